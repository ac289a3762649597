// Does the server keep to RFC 6455, as Node's ws has it? Reads a driver's token; `node test/websocket.mjs ws://HOST:PORT`.
//
// The cases that are bytes stand in gateway/tests/foreign/cases.json, which client.py beside them plays, too.
import { readFileSync } from "node:fs";
import WebSocket from "ws";

const [address] = process.argv.slice(2);
const token = readFileSync(0, "utf8").trim();
const FRAME_BYTES_MAX = 65_536;
const PATIENCE_MS = 10_000;

/** A greeted socket. Whatever the server sends goes through ws, which checks masks, lengths, UTF-8 and codes. */
class Phone {
  #heard = [];
  #waiting = null;

  static async greeted() {
    const phone = new Phone();
    phone.socket = new WebSocket(`${address}/v1/driver`, ["cabrank.v1.json", `bearer.${token}`], { perMessageDeflate: true });
    phone.socket.on("message", (data, isBinary) => phone.#hear({ json: isBinary ? null : JSON.parse(data) }));
    phone.socket.on("pong", (payload) => phone.#hear({ pong: payload }));
    phone.socket.on("close", (code, reason) => phone.#hear({ close: code, reason: String(reason) }));
    phone.socket.on("error", (error) => phone.#hear({ error: error.message }));
    const welcome = await phone.next();
    same([phone.socket.protocol, phone.socket.extensions, welcome.json?.type], ["cabrank.v1.json", "", "welcome"]);
    return phone;
  }

  #hear(event) {
    this.#heard.push(event);
    this.#waiting?.();
  }

  async next() {
    let late;
    const patience = new Promise((_, fail) => (late = setTimeout(() => fail(new Error("nothing heard")), PATIENCE_MS)));
    while (this.#heard.length === 0) await Promise.race([new Promise((here) => (this.#waiting = here)), patience]);
    clearTimeout(late);
    return this.#heard.shift();
  }
}

function same(found, wanted) {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
}

const online = (id) => JSON.stringify({ type: "online", id, classes: ["economy"] });

const stories = {
  async "pieces with pings between"() {
    const phone = await Phone.greeted();
    const { socket } = phone;
    const text = online("pieces");
    socket.send(text.slice(0, 10), { fin: false });
    socket.ping("one");
    socket.send(text.slice(10, 20), { fin: false });
    socket.ping("two");
    socket.send(text.slice(20), { fin: true });
    for (const payload of ["one", "two"]) same(String((await phone.next()).pong), payload);
    same((await phone.next()).json?.result, "done");
    socket.terminate();
  },
  async "pings of all sizes"() {
    const phone = await Phone.greeted();
    for (const size of [0, 1, 125]) {
      const payload = Buffer.alloc(size, 7);
      phone.socket.ping(payload);
      same((await phone.next()).pong?.equals(payload), true);
    }
    phone.socket.terminate();
  },
  async goodbyes() {
    for (const [code, reason] of [[1000, "bye"], [1001, ""], [3000, "ä".repeat(61)], [4999, ""]]) {
      const phone = await Phone.greeted();
      phone.socket.close(code, reason);
      same(await phone.next(), { close: code, reason });
    }
    const phone = await Phone.greeted();
    phone.socket.close();
    same(await phone.next(), { close: 1005, reason: "" });
  },
  async "the largest message and one more"() {
    const phone = await Phone.greeted();
    phone.socket.send("x".repeat(FRAME_BYTES_MAX));
    same((await phone.next()).json?.type, "error");
    phone.socket.send("x".repeat(FRAME_BYTES_MAX), { fin: false });
    phone.socket.send("x", { fin: true });
    same((await phone.next()).close, 1009);
  },
  async "a second socket takes the first one's place"() {
    const first = await Phone.greeted();
    const second = await Phone.greeted();
    same((await first.next()).close, 4410);
    second.socket.terminate();
  },
};

const cases = JSON.parse(readFileSync(new URL("../../gateway/tests/foreign/cases.json", import.meta.url), "utf8"));
for (const { name, bytes, fill = 0, answer, close } of cases) {
  stories[name] = async () => {
    const phone = await Phone.greeted();
    // Past ws, which sends nothing that is wrong.
    phone.socket._socket.write(Buffer.concat([Buffer.from(bytes.replaceAll(" ", ""), "hex"), Buffer.alloc(fill)]));
    const heard = await phone.next();
    if (answer) same(heard.json?.type, answer);
    else if (!close.includes(heard.close)) throw new Error(`${JSON.stringify(heard)}, not one of ${close}`);
    phone.socket.terminate();
  };
}

let failed = 0;
for (const [name, run] of Object.entries(stories)) {
  try {
    await run();
  } catch (error) {
    // All cases are played, and all that fail are named.
    failed += 1;
    console.log(`FAILED ${name}: ${error.message}`);
  }
}
const count = Object.keys(stories).length;
console.log(`ws: ${count - failed} of ${count} as RFC 6455 has it`);
process.exit(failed > 0 ? 1 : 0);
