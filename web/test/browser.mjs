// The live map in a real browser: connects, moves, acts, survives a restart of the server, and says what is wrong.
//
//   CABRANK=../target/release/cabrank node test/browser.mjs
//
// CHROMIUM names the browser (default: chromium on the path). CABRANK_SCREENSHOTS names a directory for pictures. Where there is
// no browser it says that it did not run, and fails if CI=true.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { complaintsAbout } from "./looks.mjs";

const PATIENCE_MS = 60_000;
const cabrank = process.env.CABRANK ?? "../target/release/cabrank";
const pictures = process.env.CABRANK_SCREENSHOTS;
const drivers = process.env.CABRANK_DRIVERS ?? "400";

function findBrowser() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  try {
    return execFileSync("sh", ["-c", "command -v chromium || command -v chromium-browser"], { encoding: "utf8" }).trim();
  } catch {
    return null;
  }
}

const executablePath = findBrowser();
if (!executablePath) {
  console.log("not run: no chromium here (apt-get install chromium, or set CHROMIUM)");
  process.exit(process.env.CI === "true" ? 1 : 0);
}

/** A token by the development secret, which the demo believes. */
function sign(claims) {
  const part = (json) => Buffer.from(JSON.stringify(json)).toString("base64url");
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
  const secret = "cabrank development secret, known to everybody";
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

const directory = mkdtempSync(join(tmpdir(), "cabrank-map-"));
const port = await freePort();
let demo = null;
let film = null;

/** Starts the city, or starts it again; the address with its token. */
async function start() {
  const args = ["demo", "--drivers", drivers, "--requests-per-minute", "400", "--listen", `127.0.0.1:${port}`];
  const env = { ...process.env, CABRANK_GATEWAY__ZONES__DIR: fileURLToPath(new URL("../../examples/zones", import.meta.url)) };
  demo = spawn(cabrank, [...args, "--data-dir", directory], { env, stdio: ["ignore", "pipe", "ignore"] });
  for await (const line of createInterface({ input: demo.stdout })) {
    const found = line.match(/the city, live: (\S+)/);
    if (found) return found[1];
  }
  throw new Error("the demo printed no address");
}

/** Simulates half an hour in a small town, and serves its film; the address. */
async function startFilm() {
  const begins = 1_211_500_800;
  // Anywhere in a town of some 5 km, always the same.
  const place = (n) => `${(37.75 + ((n * 7919) % 4000) / 1e5).toFixed(5)},${(-122.45 + ((n * 104729) % 5000) / 1e5).toFixed(5)}`;
  const trips = ["request_id,time,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,dropoff_time,passengers,vehicle_id"];
  for (let n = 0; n < 150; n++) trips.push(`${n},${begins + 12 * n},${place(n)},${place(n + 500)},${begins + 12 * n + 400},,`);
  const gps = ["vehicle_id,time,lat,lon,occupied"];
  for (const time of [begins, begins + 1_800]) for (let n = 0; n < 40; n++) gps.push(`cab${n},${time},${place(n + 900)},0`);
  const files = { trips: join(directory, "trips.csv"), gps: join(directory, "gps.csv"), film: join(directory, "film") };
  writeFileSync(files.trips, `${trips.join("\n")}\n`);
  writeFileSync(files.gps, `${gps.join("\n")}\n`);
  execFileSync(cabrank, ["simulate", "--trips", files.trips, "--gps", files.gps, "--stay", "--film", files.film], { stdio: "ignore" });
  film = spawn(cabrank, ["watch", files.film], { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface({ input: film.stdout })) {
    const found = line.match(/drawings: (\S+)/);
    if (found) return found[1];
  }
  throw new Error("the film is not shown");
}

async function kill() {
  const gone = once(demo, "exit");
  demo.kill("SIGKILL");
  await gone;
}

async function until(what, found) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const value = await found();
    if (value) return value;
    assert.ok(Date.now() < deadline, `${what} did not happen`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

let failed = true;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
try {
  const address = await start();
  const origin = new URL(address).origin;
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "light" });
  const complaints = [];
  const requested = [];
  const watch = (page) => {
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      // What the network refuses the browser reports by itself, whatever the page does about it.
      const isNetwork = message.text().startsWith("Failed to load resource");
      if (["error", "warning"].includes(message.type()) && !isNetwork) complaints.push(message.text());
    });
    page.on("request", (request) => requested.push(request.url()));
  };
  const page = await context.newPage();
  watch(page);
  const picture = async (name, of = page) => {
    if (pictures) await of.screenshot({ path: join(pictures, `${name}.png`) });
  };
  /** In both colours; what the page looks like is put back. */
  const judge = async (name, of = page) => {
    for (const colorScheme of ["dark", "light"]) {
      await of.emulateMedia({ colorScheme });
      assert.deepEqual(await complaintsAbout(of), [], `${name}, ${colorScheme}`);
    }
  };
  const data = (name) => page.evaluate((name) => document.body.dataset[name], name);
  const text = (id) => page.textContent(`#${id}`);
  const number = async (id) => Number(await text(id));

  // Without a token: a person reads what to do.
  await page.goto(origin);
  await page.waitForSelector("#door:visible");
  assert.match(await text("token-why"), /operator's token/);
  await picture("no-token");
  await judge("the door");
  await page.fill("#token", "nonsense");
  await page.click("#door button");
  await until("the refusal of a token that is none", async () => /get one signed with this server's key/.test(await text("token-why")));
  // One that is over says so.
  const over = sign({ sub: "demo", role: "ops", exp: Math.floor(Date.now() / 1000) - 60 });
  await page.fill("#token", over);
  await page.click("#door button");
  await until("the refusal of a token that is over", async () => /is over: get a new one/.test(await text("token-why")));
  await picture("token-over");
  const driversToken = execFileSync(cabrank, ["token", "--role", "driver"], { encoding: "utf8" }).trim();
  await page.fill("#token", driversToken);
  await page.click("#door button");
  await until("the refusal of a driver", async () => /role driver may not call this/.test(await text("token-why")));

  // With it: the city, moving.
  await page.goto(address);
  await page.reload();
  await until("cars on the map", async () => Number(await data("cars")) > 100);
  await until("rides", async () => (await number("rides-2")) > 0);
  await until("rates", async () => Number(await text("rate-requested")) > 0);
  assert.equal(await page.isVisible("#door"), false);
  const first = Number(await data("frame"));
  await until("new drawings", async () => Number(await data("frame")) !== first);
  const shot = async () => (await page.locator("#map").screenshot()).toString("base64");
  const before = await shot();
  await until("movement", async () => (await shot()) !== before);
  await until("a count of frames", async () => (await data("fps")) !== undefined);
  console.log(`${await data("cars")} cars: ${await data("fps")} frames a second, ${await data("paintMs")} ms of script each`);
  await picture("light");

  // Zones, and the last seconds once more; before them, what the log says.
  await until("the minutes before the page was opened", async () => Number(await page.getAttribute("#slider", "min")) <= -590);
  await until("the zones", async () => (await data("zones")) === "4");
  await until("some seconds that were seen", async () => Number(await page.getAttribute("#slider", "min")) <= -5);
  const slide = (ago) =>
    page.evaluate((ago) => {
      const slider = document.getElementById("slider");
      slider.value = String(-ago);
      slider.dispatchEvent(new Event("input"));
    }, ago);
  await slide(4);
  await until("the past", async () => /0:0[34] ago/.test(await text("status")));
  await page.click("#play");
  const paused = await data("past");
  // New answers come meanwhile: what is shown stands still, so it lies further back.
  await until(`more than ${paused} s ago`, async () => Number(await data("past")) > Number(paused));
  await picture("past");
  await page.click("#now");
  await until("now again", async () => (await text("status")) === "Live" && (await data("past")) === "");

  // What is expected, as the forecast service beside the demo says: cells with a number, and the busiest in words.
  const withoutForecast = await shot();
  await page.selectOption("#cells", "forecast");
  await until("a forecast", async () => /Busiest cell: \d+(\.\d)? rides in 15 min/.test(await text("forecast-told")));
  assert.ok(Number(await data("forecast")) > 0);
  await until("the forecast on the map", async () => (await shot()) !== withoutForecast);
  await picture("forecast");
  await page.selectOption("#cells", "balance");
  await until("no forecast", async () => (await data("forecast")) === undefined && (await text("forecast-told")) === "");

  // Looking closer: by search, by click, by keyboard.
  await page.keyboard.press("/");
  await page.keyboard.type("no-such-driver");
  await page.keyboard.press("Enter");
  await until("that nobody is found", async () => /named no-such-driver/.test(await text("search-told")));
  await page.focus("#map");
  for (const key of ["+", "+", "ArrowLeft", "ArrowUp", "-"]) await page.keyboard.press(key);
  await page.click("#zoom-all");
  const token = new URLSearchParams(new URL(address).hash.slice(1)).get("token");
  const ask = (path) =>
    page.evaluate(
      async ([path, token]) => (await fetch(path, { headers: { Authorization: `Bearer ${token}` } })).json(),
      [path, token],
    );
  const name = async () => {
    for (let key = 1; key < 50; key++) {
      const { driver } = await ask(`/v1/map/drivers/${key}`);
      const state = driver && (await ask(`/v1/drivers/${driver}`));
      if (state?.online && state.at && (state.stage === "en_route" || key > 40)) return driver;
    }
    return null;
  };
  const driver = await until("a driver at work", name);
  await page.fill("#search-text", driver);
  await page.press("#search-text", "Enter");
  await until("the driver's panel", async () => (await text("detail-title")) === `driver ${driver}`);
  await page.waitForSelector("#detail .history li");
  await picture("driver");
  await judge("the map with a driver's panel");
  // The map stands centred on the driver now.
  await page.click("#close");
  const clicked = async () => {
    await page.mouse.click(640, 400);
    return (await page.isVisible("#detail")) && (await text("detail-title")).length > 6;
  };
  await until("a click on a car", clicked);

  // The panel is told anew every two seconds: who is in it by keyboard stays where they are.
  await page.focus("#detail-body summary");
  const told = () => page.evaluate(() => document.activeElement.closest("details")?.dataset.key);
  const focused = await told();
  await page.evaluate(() => {
    document.activeElement.dataset.before = "yes";
  });
  await until("the panel told anew", () => page.evaluate(() => !document.querySelector("[data-before]")));
  assert.equal(await told(), focused, "the focus stays on the same line");

  // Acting: asks first, says who and why.
  await page.fill("#search-text", driver);
  await page.press("#search-text", "Enter");
  await page.click("#detail .actions .act >> text=Suspend");
  await page.waitForSelector("#ask[open]");
  await picture("asks");
  await judge("a question");
  await page.click("#ask-no");
  assert.equal((await ask(`/v1/drivers/${driver}`)).suspended, undefined, "No changes nothing");
  await page.click("#detail .actions .act >> text=Suspend");
  await page.fill("#ask-reason", "a test of the desk");
  await page.click("#ask .act");
  await until("the suspension", async () => (await ask(`/v1/drivers/${driver}`)).suspended === "a test of the desk");
  await until("the panel says it", async () => /suspended/.test(await text("detail-body")));
  assert.match(await text("detail-body"), /ops demo “a test of the desk”/);
  await picture("suspended");

  // Nodes: one process has none; of two that are made up one may be asked to leave, and the refusal is read by a person.
  await page.click("#nodes");
  await until("that the city is one process", async () => /is one process/.test(await text("detail-body")));
  const made = { nodes: ["node-1", "node-2"].map((node) => ({ node, address: "h:1", shards: [0] })), one_process: false };
  await page.route("**/v1/nodes", (route) => route.fulfill({ json: made }));
  const drain = page.locator("#detail .facts dd").nth(1).getByText("Drain…");
  await drain.click();
  await page.waitForSelector("#ask[open]");
  assert.match(await text("ask-question"), /Let node-2 hand its shards over and end\?/);
  await page.fill("#ask-reason", "a test of the desk");
  await picture("drain");
  await page.click("#ask .act");
  await until("the refusal in words", async () => /this city is one process/.test(await text("ask-problem")));
  await page.click("#ask-no");
  await page.unroute("**/v1/nodes");

  // A server that is killed and starts again: the page says so and goes on by itself.
  await kill();
  await until("the page says that the server is gone", async () => /does not answer/.test(await text("status")));
  await picture("server-gone");
  await start();
  await until("the page goes on by itself", async () => (await text("status")) === "Live" && Number(await data("cars")) > 100);

  // A film of a simulated evening on the same page: it plays, cars move, the slider goes anywhere.
  const shown = await startFilm();
  const theatre = await context.newPage();
  watch(theatre);
  await theatre.goto(shown);
  const cars = () => theatre.evaluate(() => Number(document.body.dataset.cars));
  const when = async () => (await theatre.textContent("#ago")) ?? "";
  await until("the film's cars", async () => (await cars()) === 40);
  const opening = await when();
  await until("the film's time", async () => (await when()) !== opening);
  const picturesOf = async () => (await theatre.locator("#map").screenshot()).toString("base64");
  const still = await picturesOf();
  await until("cars that move", async () => (await picturesOf()) !== still);
  assert.equal(await theatre.isVisible("#search"), false, "nobody can be asked about a film");
  const length = -Number(await theatre.getAttribute("#slider", "min"));
  assert.ok(length > 1_500, `${length} s`);
  await theatre.click("#play");
  assert.equal(await theatre.textContent("#play"), "Play");
  for (const [name, part] of [["begin", 1], ["middle", 0.5], ["end", 0]]) {
    await theatre.evaluate((ago) => {
      const slider = document.getElementById("slider");
      slider.value = String(-ago);
      slider.dispatchEvent(new Event("input"));
    }, length * part);
    await theatre.waitForTimeout(400);
    await picture(`film-${name}`, theatre);
  }
  await until("the end", async () => /at its end/.test(await theatre.textContent("#status")));
  await theatre.focus("#slider");
  await theatre.keyboard.press("Home");
  await until("the beginning, by keyboard", async () => (await when()) === opening || Number(await theatre.inputValue("#slider")) <= -length + 120);
  await judge("a film", theatre);
  await theatre.close();
  film.kill("SIGTERM");

  // Dark, narrow, and the page about the API.
  await page.emulateMedia({ colorScheme: "dark" });
  await picture("dark");
  await page.setViewportSize({ width: 420, height: 800 });
  await picture("narrow");
  const api = await context.newPage();
  watch(api);
  await api.goto(`${origin}/api`);
  await api.waitForSelector("article");
  await picture("api", api);
  await judge("the page about the API", api);

  assert.deepEqual(complaints, [], "nothing in the console");
  const foreign = requested.filter((url) => !url.startsWith(origin) && !url.startsWith(shown) && !url.startsWith("data:"));
  assert.deepEqual(foreign, [], "nothing is fetched from elsewhere");
  assert.ok(requested.every((url) => !url.includes("token=") || url.includes("#")), "no token in a URL");
  failed = false;
  console.log("the map works in a browser");
} finally {
  await browser.close();
  if (film && film.exitCode === null && film.signalCode === null) film.kill("SIGKILL");
  if (demo && demo.exitCode === null && demo.signalCode === null) await kill();
  rmSync(directory, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);
