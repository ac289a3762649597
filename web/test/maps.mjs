// What do many open maps cost the server? Asks as that many pages do, and says how much processor time the server took beside them.
//
//   node test/maps.mjs 'http://127.0.0.1:8080/#token=...' <process id of the server> [maps] [seconds] [cores at most]
//
// Before and after as long without any map, so that what the city itself costs can be taken off. Linux only: reads /proc.
import { readFileSync } from "node:fs";
import { Agent, get } from "node:http";

const [address, pid, maps = "50", seconds = "20", most = "Infinity"] = process.argv.slice(2);
const { origin, hash } = new URL(address);
const headers = { Authorization: `Bearer ${new URLSearchParams(hash.slice(1)).get("token")}` };
const TICKS_PER_SECOND = 100;
const TICK_MS = 500;
const AREA_EVERY = 4;

/** Processor seconds the server has had. */
function cpu() {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").pop().split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

const rest = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
let asked = 0;
let bytes = 0;

function ask(agent, path) {
  return new Promise((resolve, reject) => {
    get(`${origin}${path}`, { agent, headers }, (answer) => {
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("end", () => {
        if (answer.statusCode >= 400) reject(new Error(`${path}: ${answer.statusCode} ${Buffer.concat(parts)}`));
        asked += 1;
        const body = Buffer.concat(parts);
        bytes += body.length;
        resolve(body);
      });
    }).on("error", reject);
  });
}

async function look(n, until) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  await rest((TICK_MS * n) / Number(maps));
  const whole = await ask(agent, "/v1/map");
  const [south, west, north, east] = [16, 20, 24, 28].map((at) => whole.readInt32LE(at) / 1e7);
  const view = `south=${south}&west=${west}&north=${north}&east=${east}`;
  let after = "";
  for (let turn = 0; Date.now() < until; turn++) {
    const began = Date.now();
    const drawn = await ask(agent, `/v1/map?${view}${after}`);
    if (drawn.length > 0) after = `&after=${drawn.readUInt32LE(4)}`;
    if (turn % AREA_EVERY === 0) await ask(agent, `/v1/map/area?${view}`);
    await rest(TICK_MS - (Date.now() - began));
  }
  agent.destroy();
}

async function measure(count) {
  const [before, began] = [cpu(), Date.now()];
  const until = began + Number(seconds) * 1_000;
  await Promise.all([rest(until - began), ...Array.from({ length: count }, (_, n) => look(n, until))]);
  return (cpu() - before) / ((Date.now() - began) / 1_000);
}

const before = await measure(0);
const beside = await measure(Number(maps));
const without = (before + (await measure(0))) / 2;
console.log(
  `${maps} maps: ${(beside - without).toFixed(3)} cores (${beside.toFixed(3)} with them, ${without.toFixed(3)} without), ` +
    `${(asked / Number(seconds)).toFixed(0)} answers and ${(bytes / Number(seconds) / 1e6).toFixed(2)} MB a second`,
);
if (asked < Number(maps) * Number(seconds)) {
  console.error(`${maps} maps ask twice a second each: ${asked} answers are too few to say anything`);
  process.exit(1);
}
if (beside - without > Number(most)) {
  console.error(`more than ${most} cores`);
  process.exit(1);
}
