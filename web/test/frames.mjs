// How many frames a second does the map draw, and how long does one take? A headless browser that looks at a running city.
//
//   node test/frames.mjs 'http://127.0.0.1:8080/#token=...' [seconds]
//
// Without a GPU the browser paints with the processor, so a busy machine shows fewer frames than a person's would;
// `paint` is what the page's own code takes a frame.
import { chromium } from "playwright-core";

const [address, seconds = "20"] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.goto(address);
  await page.waitForFunction(() => document.body.dataset.fps !== undefined);
  const seen = [];
  for (let second = 0; second < Number(seconds); second++) {
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    seen.push(await page.evaluate(() => [Number(document.body.dataset.fps), Number(document.body.dataset.paintMs)]));
  }
  const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const of = (at) => seen.map((pair) => pair[at]);
  console.log(`${median(of(0))} frames a second (least ${Math.min(...of(0))}), paint ${median(of(1))} ms a frame (most ${Math.max(...of(1))})`);
} finally {
  await browser.close();
}
