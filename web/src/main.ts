// The live map: asks the server for what is seen, draws it, and lets a person look closer and act.

import { Camera, toWorld } from "./camera";
import { City, where } from "./city";
import { type Cell, type CellsShow, Painter, type Selected } from "./draw";
import { readFilm } from "./film";
import { readFrame } from "./frame";
import { clock, find, Panel, type Rates } from "./panel";
import { Past } from "./past";
import { Refused, Server, Silent } from "./server";

/** Until the server has said how often it draws. */
const TICK_MS = 500;
/** A page nobody looks at asks this seldom. */
const HIDDEN_MS = 5_000;
const AREA_MS = 2_000;
const ZONES_MS = 10_000;
/** After the server was silent. */
const RETRY_MS = 1_000;
/** How often the past is drawn anew while it is watched. */
const PAST_MS = 250;
/** How fast a film passes at first, and how fast it may: drawings are some seconds apart. */
const FILM_SPEED = "60";
const FILM_SPEEDS = ["60", "240"];
/** A click this near to a car or a pickup means it, pixels. */
const NEAR_PX = 14;

const canvas = find<HTMLCanvasElement>("map");
const meta = (name: string) =>
  document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? "";
const camera = new Camera();
const city = new City();
const server = new Server();
const panel = new Panel(server);
const painter = new Painter(canvas, camera, meta("tile-url"));
/** Where a film is, when the page shows one and no city. */
const film = meta("film");
const past = new Past(film !== "");
const selected: Selected = { driver: null, ride: null };
let selectedName = "";
let isPlaced = false;
/** The server has been asked for the minutes before. */
let isRemembered = false;
let wakeUp: () => void = () => {};

/** Says how it stands; `state` is for the style sheet. */
function say(state: "live" | "past" | "waiting" | "problem", text: string): void {
  const status = find("status");
  if (status.textContent !== text) status.textContent = text;
  document.body.dataset.state = state;
}

/** Waits, or less if somebody wants an answer now. */
function rest(ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wakeUp = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

/** The token is missing or not good: a person has to do something. */
function askForToken(why: string): void {
  say("problem", "Not connected");
  find("token-why").textContent = why;
  find("door").hidden = false;
}

const NO_TOKEN =
  "This page shows where people are, so it opens only with an operator's token. Open the address that the server " +
  "printed (it ends in #token=…), or put a token in here.";

async function lookOn(): Promise<never> {
  let after = "";
  let areaAt = Number.NEGATIVE_INFINITY;
  let zonesAt = Number.NEGATIVE_INFINITY;
  for (;;) {
    const began = performance.now();
    let pause = document.hidden ? HIDDEN_MS : (city.frame?.tickMs ?? TICK_MS);
    if (!server.token) {
      askForToken(NO_TOKEN);
      await rest(3_600_000);
      continue;
    }
    try {
      if (!isPlaced) {
        const whole = readFrame(await bytesOf(await server.ask("/v1/map")));
        if (whole.bounds) {
          camera.fit(whole.bounds);
          isPlaced = true;
        }
      }
      const answer = await server.ask(`/v1/map?${camera.query()}${after}`);
      if (answer.status === 200) {
        const bytes = await bytesOf(answer);
        const frame = readFrame(bytes);
        past.keep(bytes);
        if (!isRemembered) {
          isRemembered = true;
          void remember();
        }
        if (past.isLive) {
          city.take(frame, performance.now());
          panel.counts(frame);
        }
        find("too-many").hidden = !frame.tooMany;
        document.body.dataset.cars = String(frame.seen.length);
        document.body.dataset.frame = String(frame.number);
        after = `&after=${frame.number}`;
      }
      if (began - areaAt >= AREA_MS) {
        areaAt = began;
        const area = await server.read<{ cells: Cell[]; rates: Rates }>(`/v1/map/area?${camera.query()}`);
        painter.cells = area.cells;
        panel.rates(area.rates);
      }
      if (began - zonesAt >= ZONES_MS) {
        zonesAt = began;
        await painter.zones.refresh(server);
      }
      if (painter.show === "forecast") await painter.forecast.refresh(server, camera, began);
      find("door").hidden = true;
      if (past.isLive) say("live", "Live");
    } catch (why) {
      after = "";
      if (why instanceof Silent) {
        say("waiting", `${why.message} Trying again…`);
        pause = RETRY_MS;
      } else if (why instanceof Refused && (why.status === 401 || why.status === 403)) {
        server.token = "";
        askForToken(sentence(why.message));
      } else if (why instanceof Refused) {
        say("waiting", sentence(why.message));
        pause = RETRY_MS;
      } else throw why;
    }
    await rest(Math.max(50, pause - (performance.now() - began)));
  }
}

const bytesOf = async (answer: Response) => new Uint8Array(await answer.arrayBuffer());

/** Asks once for the minutes before this page was opened. Without them the slider begins where the page did. */
async function remember(): Promise<void> {
  try {
    past.prepend(readFilm(await (await server.ask("/v1/map/film")).arrayBuffer()));
  } catch (why) {
    if (!(why instanceof Refused || why instanceof Silent)) throw why;
  }
}

/** Shows a film instead of a city. */
async function showFilm(): Promise<void> {
  document.body.dataset.film = "yes";
  find("past").setAttribute("aria-label", "The film");
  find("slider").setAttribute("aria-label", "When");
  find("now").textContent = "Start";
  const speed = find<HTMLSelectElement>("speed");
  for (const value of FILM_SPEEDS) speed.append(new Option(`${value}×`, value));
  speed.value = FILM_SPEED;
  try {
    past.prepend(readFilm(await (await server.ask(film)).arrayBuffer()));
  } catch (why) {
    return say("problem", why instanceof Error ? sentence(why.message) : "There is no film.");
  }
  past.play();
  const first = past.step(performance.now(), 0);
  if (first?.bounds) camera.fit(first.bounds);
}

const sentence = (text: string) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

const minutes = (ms: number) => {
  const seconds = Math.round(ms / 1_000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
};

/** The slider: where it stands is how long ago, in seconds below zero. */
function watchPast(): void {
  const slider = find<HTMLInputElement>("slider");
  const play = find<HTMLButtonElement>("play");
  const speed = find<HTMLSelectElement>("speed");
  const show = () => {
    const frame = past.step(performance.now(), Number(speed.value));
    slider.min = String(-Math.ceil(past.length / 1_000));
    slider.value = String(-past.ago / 1_000);
    const told = frame && film ? clock(frame.time) : past.isLive ? "now" : `${minutes(past.ago)} ago`;
    slider.setAttribute("aria-valuetext", told);
    find("ago").textContent = told;
    document.body.dataset.past = past.isLive ? "" : String(Math.round(past.ago / 1_000));
    play.textContent = past.isLive || past.plays ? "Pause" : "Play";
    if (!frame) return;
    city.take(frame, performance.now());
    panel.counts(frame);
    document.body.dataset.cars = String(frame.seen.length);
    if (!film) say("past", `${minutes(past.ago)} ago`);
    else say("past", past.plays ? "Film" : past.ago > 0 ? "Film, paused" : "Film, at its end");
  };
  slider.addEventListener("input", () => {
    past.goTo(-Number(slider.value) * 1_000);
    show();
  });
  play.addEventListener("click", () => {
    if (past.isLive) past.goTo(1);
    else if (!past.plays) {
      past.play();
      return show();
    }
    past.pause();
    show();
  });
  find("now").addEventListener("click", () => {
    past.goTo(film ? past.length : 0);
    show();
  });
  setInterval(show, PAST_MS);
}

/** What lies under the pointer. */
function pick(x: number, y: number): void {
  const now = performance.now();
  let nearest = NEAR_PX;
  let driver: number | null = null;
  let ride: string | null = null;
  for (const car of city.cars.values()) {
    const at = where(car, now);
    const away = Math.hypot(camera.x(at) - x, camera.y(at) - y);
    if (away < nearest) [nearest, driver] = [away, car.key];
  }
  for (const going of city.rides.values()) {
    const at = toWorld(...going.pickup);
    const away = Math.hypot(camera.x(at) - x, camera.y(at) - y);
    if (going.stage < 4 && away < nearest) [nearest, driver, ride] = [away, null, going.id];
  }
  if (driver === null && ride === null) return panel.close();
  selected.driver = driver;
  selected.ride = ride;
  // Nobody can be asked about a film.
  if (film) return;
  if (ride !== null) void panel.open({ kind: "ride", id: ride }, false);
  else void openDriver(driver ?? 0);
}

async function openDriver(key: number): Promise<void> {
  try {
    const { driver } = await server.read<{ driver: string }>(`/v1/map/drivers/${key}`);
    selectedName = driver;
    await panel.open({ kind: "driver", id: driver }, false);
  } catch (why) {
    if (!(why instanceof Refused || why instanceof Silent)) throw why;
    say("waiting", sentence(why.message));
  }
}

panel.onPlace = ({ lat, lon }) => {
  camera.center = toWorld(lat, lon);
  camera.zoom = Math.max(camera.zoom, 14);
  wakeUp();
};
panel.onChoose = (entity, state) => {
  if (!entity || entity.kind !== "driver") {
    selected.ride = entity?.kind === "ride" ? entity.id : null;
    selected.driver = selected.ride ? (city.rides.get(selected.ride)?.driver ?? null) : null;
    selectedName = "";
    return;
  }
  if (entity.id !== selectedName) {
    selectedName = entity.id;
    selected.driver = null;
  }
  selected.ride = state && "ride" in state ? (state.ride ?? null) : null;
  if (selected.driver === null && state && "at" in state && state.at) {
    // Found by name: the car drawn where the server says the driver is.
    const at = toWorld(state.at.lat, state.at.lon);
    for (const car of city.cars.values()) {
      if (Math.hypot(car.to[0] - at[0], car.to[1] - at[1]) < 2e-8) selected.driver = car.key;
    }
  }
};

/** Looks a text up: a ride's id has two dashes between numbers, else it is a driver's or a rider's. */
async function search(text: string): Promise<void> {
  const told = find("search-told");
  told.textContent = "";
  const id = encodeURIComponent(text);
  const kinds: ("ride" | "driver")[] = /^\d+-\d+-\d+$/.test(text) ? ["ride", "driver"] : ["driver", "ride"];
  try {
    for (const kind of kinds) {
      const found = await server.ask(`/v1/${kind}s/${id}`).catch((why: unknown) => {
        if (why instanceof Refused && (why.status === 404 || why.status === 400)) return null;
        throw why;
      });
      if (found) return await panel.open({ kind, id: text }, true);
    }
    const rider = await server.read<{ ride?: string }>(`/v1/riders/${id}`);
    if (rider.ride) return await panel.open({ kind: "rider", id: text }, true);
    told.textContent = `Nobody and nothing named ${text} is here now.`;
  } catch (why) {
    if (!(why instanceof Refused || why instanceof Silent)) throw why;
    told.textContent = why.message;
  }
}

function listen(): void {
  addEventListener("resize", () => painter.fitWindow());
  addEventListener("hashchange", () => {
    server.readAddress();
    wakeUp();
  });
  document.addEventListener("visibilitychange", () => wakeUp());

  const pointers = new Map<number, [number, number]>();
  let travelled = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (pointers.size === 1) travelled = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.offsetX - before[0], event.offsetY - before[1]];
    travelled += Math.hypot(dx, dy);
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1] ?? before;
      const apart = (at: [number, number]) => Math.max(1, Math.hypot(at[0] - other[0], at[1] - other[1]));
      const steps = Math.log2(apart([event.offsetX, event.offsetY]) / apart(before));
      camera.zoomAt((event.offsetX + other[0]) / 2, (event.offsetY + other[1]) / 2, steps);
      camera.pan(dx / 2, dy / 2);
    } else camera.pan(dx, dy);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
  });
  const lift = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return;
    if (event.type === "pointerup" && travelled < 5) pick(event.offsetX, event.offsetY);
    else wakeUp();
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const pixels = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
      camera.zoomAt(event.offsetX, event.offsetY, -pixels / 300);
    },
    { passive: false },
  );
  const zoom = (steps: number) => camera.zoomAt(camera.width / 2, camera.height / 2, steps);
  const whole = () => {
    isPlaced = false;
    wakeUp();
  };
  const keys: Record<string, () => void> = {
    ArrowLeft: () => camera.pan(80, 0),
    ArrowRight: () => camera.pan(-80, 0),
    ArrowUp: () => camera.pan(0, 80),
    ArrowDown: () => camera.pan(0, -80),
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(-0.5),
    "0": whole,
  };
  canvas.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
  });
  addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (event.key === "/" && !typing) {
      event.preventDefault();
      find("search-text").focus();
    } else if (event.key === "Escape" && !find<HTMLDialogElement>("ask").open) {
      panel.close();
      canvas.focus();
    }
  });
  find("zoom-in").addEventListener("click", () => zoom(1));
  find("zoom-out").addEventListener("click", () => zoom(-1));
  find("zoom-all").addEventListener("click", whole);
  find("ask-no").addEventListener("click", () => find<HTMLDialogElement>("ask").close());
  find("cells").addEventListener("change", (event) => {
    painter.show = (event.target as HTMLSelectElement).value as CellsShow;
    if (painter.show !== "forecast") painter.forecast.hide();
    wakeUp();
  });
  find("lines").addEventListener("change", (event) => {
    painter.lines = (event.target as HTMLInputElement).checked;
  });
  find("offline").addEventListener("change", (event) => {
    painter.offline = (event.target as HTMLInputElement).checked;
  });
  find("zones").addEventListener("change", (event) => {
    painter.showZones = (event.target as HTMLInputElement).checked;
  });
  find("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find<HTMLInputElement>("search-text").value.trim();
    if (text) void search(text);
  });
  find("door-form").addEventListener("submit", (event) => {
    event.preventDefault();
    server.token = find<HTMLInputElement>("token").value.trim();
    find<HTMLInputElement>("token").value = "";
    wakeUp();
  });
}

/** Draws whenever the browser is ready for it, and counts how often that is. */
function draw(): void {
  let frames = 0;
  let took = 0;
  let since = performance.now();
  const paint = (now: number) => {
    const began = performance.now();
    painter.paint(city, selected, now);
    took += performance.now() - began;
    frames += 1;
    if (now - since >= 1_000) {
      document.body.dataset.fps = ((frames * 1_000) / (now - since)).toFixed(0);
      document.body.dataset.paintMs = (took / frames).toFixed(1);
      [frames, took, since] = [0, 0, now];
    }
    requestAnimationFrame(paint);
  };
  requestAnimationFrame(paint);
}

const credit = meta("tile-credit");
if (credit) find("credit").textContent = credit;
server.readAddress();
painter.fitWindow();
listen();
watchPast();
draw();
void (film ? showFilm() : lookOn());
