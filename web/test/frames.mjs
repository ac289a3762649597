// How many frames a second does the map draw, and how long does one take? A headless browser that looks at a running city.
//
//   node test/frames.mjs 'http://127.0.0.1:8080/#token=...' [seconds] [frames a second at least]
//
// Without a GPU the browser paints with the processor, so a busy machine shows fewer frames than a person's would;
// `paint` is what the page's own code takes a frame. With a bound it fails unless the median of so many seconds in a row is
// as high, of up to four times as many; and if the page's own code takes more than a third of a frame's time.
import { chromium } from "playwright-core";

const [address, seconds = "20", least = "0"] = process.argv.slice(2);
const STRETCHES = 4;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.goto(address);
  await page.waitForFunction(() => document.body.dataset.fps !== undefined);
  let seen = [];
  const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
  const of = (at) => seen.map((pair) => pair[at]);
  const most = Number(seconds);
  let is_smooth = false;
  for (let second = 0; second < (Number(least) > 0 ? STRETCHES : 1) * most && !is_smooth; second++) {
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const told = await page.evaluate(() => [document.body.dataset.fps, document.body.dataset.paintMs, document.body.dataset.cars]);
    seen = [...seen, told.map(Number)].slice(-most);
    is_smooth = seen.length === most && Number(least) > 0 && median(of(0)) >= Number(least);
  }
  const [fps, paint, cars] = [0, 1, 2].map((at) => median(of(at)));
  console.log(`${cars} cars: ${fps} frames a second (least ${Math.min(...of(0))}), paint ${paint} ms a frame (most ${Math.max(...of(1))})`);
  if (Number(least) > 0 && (!is_smooth || paint > 1_000 / Number(least) / 3)) {
    console.error(`not ${least} frames a second with room to spare`);
    process.exitCode = 1;
  }
} finally {
  await browser.close();
}
