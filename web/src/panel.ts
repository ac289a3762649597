// The panel beside the map: counts, rates, what was clicked, and what the desk may do about it.

import { DRIVER_STATES, type Frame } from "./frame";
import { Refused, type Server, Silent } from "./server";

export interface Rates {
  seconds: number;
  requested: number;
  offered: number;
  assigned: number;
  completed: number;
  cancelled: number;
  unfulfilled: number;
  offer_p50_ms?: number;
  offer_p95_ms?: number;
  offer_p99_ms?: number;
  pings_per_second: number;
}

interface Place {
  lat: number;
  lon: number;
}

interface DriverState {
  driver: string;
  online: boolean;
  ride?: string;
  stage?: string;
  suspended?: string;
  at?: Place;
  age_ms?: number;
}

interface RideState {
  ride: string;
  stage: string;
  rider: string;
  pickup: Place;
  dropoff?: Place;
  class: string;
  requested_at: number;
  driver?: string;
  cancelled_by?: string;
  reason?: string;
}

interface Nodes {
  nodes: { node: string; address: string; shards: number[] }[];
  one_process: boolean;
}

interface Past {
  time: number;
  kind: "command" | "event";
  record: { id?: string; type?: string; reason?: string; data?: Record<string, unknown> };
}

interface History {
  past: Past[];
  is_cut: boolean;
}

/** What is looked at. */
export type Entity = { kind: "driver" | "ride" | "rider"; id: string } | { kind: "nodes" };

const REFRESH_MS = 2_000;

export function find<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page lacks #${id}`);
  return found as T;
}

function make(tag: string, text = "", className = ""): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** One row of a list of facts. */
function fact(list: HTMLElement, name: string, value: string | HTMLElement): void {
  list.append(make("dt", name));
  const shown = make("dd");
  shown.append(value);
  list.append(shown);
}

export const clock = (ms: number) => new Date(ms).toLocaleTimeString([], { hour12: false });
const seconds = (ms: number) => (ms < 10_000 ? `${(ms / 1_000).toFixed(1)} s` : `${Math.round(ms / 1_000)} s`);

export class Panel {
  shown: Entity | null = null;
  /** Called with the place of what was looked up, so that the map can go there. */
  onPlace: (place: Place) => void = () => {};
  onChoose: (entity: Entity | null, state: DriverState | RideState | null) => void = () => {};
  private refreshing = 0;
  /** The map is to go to what is shown as soon as its place is known. */
  private goThere = false;

  constructor(private readonly server: Server) {
    find("close").addEventListener("click", () => this.close());
    find("nodes").addEventListener("click", () => void this.open({ kind: "nodes" }, false));
    setInterval(() => void this.refresh(), REFRESH_MS);
  }

  counts(frame: Frame): void {
    DRIVER_STATES.forEach((_, n) => {
      find(`drivers-${n}`).textContent = String(frame.drivers[n] ?? 0);
    });
    for (let n = 0; n < 5; n++) find(`rides-${n}`).textContent = String(frame.rides[n] ?? 0);
    find("silent").textContent = frame.silent > 0 ? `${frame.silent} silent` : "";
    find("time").textContent = clock(frame.time);
  }

  rates(rates: Rates): void {
    const per = (count: number) => ((count * 60) / Math.max(1, rates.seconds)).toFixed(0);
    const ms = (value?: number) => (value === undefined ? "–" : value < 1_000 ? `${value} ms` : seconds(value));
    const values: Record<string, string> = {
      requested: per(rates.requested),
      assigned: per(rates.assigned),
      completed: per(rates.completed),
      cancelled: per(rates.cancelled),
      unfulfilled: per(rates.unfulfilled),
      pings: rates.pings_per_second.toFixed(0),
      p50: ms(rates.offer_p50_ms),
      p95: ms(rates.offer_p95_ms),
      p99: ms(rates.offer_p99_ms),
    };
    for (const [name, value] of Object.entries(values)) find(`rate-${name}`).textContent = value;
  }

  /** Shows what is known of somebody or something, and goes on showing it as it changes. */
  async open(entity: Entity, goThere: boolean): Promise<void> {
    this.shown = entity;
    find("detail").hidden = false;
    find("detail-title").textContent = entity.kind === "nodes" ? "Nodes" : `${entity.kind} ${entity.id}`;
    find("detail-body").replaceChildren(make("p", "…"));
    this.goThere = goThere;
    await this.refresh();
  }

  close(): void {
    this.shown = null;
    find("detail").hidden = true;
    this.onChoose(null, null);
  }

  private async refresh(): Promise<void> {
    const entity = this.shown;
    if (!entity || document.hidden || find<HTMLDialogElement>("ask").open) return;
    const turn = ++this.refreshing;
    try {
      if (entity.kind === "nodes") {
        const nodes = await this.server.read<Nodes>("/v1/nodes");
        const history = await this.server.read<History>("/v1/dispatch/history");
        if (turn !== this.refreshing) return;
        this.renderNodes(nodes, history);
        this.onChoose(entity, null);
        return;
      }
      const path = `/v1/${entity.kind}s/${encodeURIComponent(entity.id)}`;
      const state = await this.server.read<DriverState & RideState>(path);
      if (entity.kind === "rider" && state.ride && this.goThere) {
        await this.open({ kind: "ride", id: state.ride }, true);
        return;
      }
      const history = await this.server.read<History>(`${path}/history`);
      if (turn !== this.refreshing) return;
      this.render(entity, state, history);
      this.onChoose(entity, state);
      const place = state.at ?? state.pickup;
      if (this.goThere && place) {
        this.goThere = false;
        this.onPlace(place);
      }
    } catch (why) {
      if (turn !== this.refreshing) return;
      if (why instanceof Refused || why instanceof Silent) {
        find("detail-body").replaceChildren(make("p", why.message, "problem"));
      } else throw why;
    }
  }

  private renderNodes({ nodes, one_process }: Nodes, history: History): void {
    const facts = make("dl", "", "facts");
    for (const { node, address, shards } of nodes) {
      const value = make("span", `${address}, ${shards.length > 0 ? `shards ${shards.join(", ")}` : "no shard: it stands by"} `);
      const asks = `Let ${node} hand its shards over and end?`;
      value.append(this.action("Drain…", asks, `/v1/nodes/${encodeURIComponent(node)}/drain`, true));
      fact(facts, node, value);
    }
    const alone = one_process ? "This city is one process: it has no nodes that could leave." : "";
    this.fill(history, facts, make("p", alone));
  }

  private render(entity: Exclude<Entity, { kind: "nodes" }>, state: DriverState & RideState, history: History): void {
    const facts = make("dl", "", "facts");
    const actions = make("div", "", "actions");
    if (entity.kind === "driver") {
      const works = state.suspended ? "suspended" : state.online ? "at work" : "offline";
      fact(facts, "State", state.stage ? `${works}, ride ${state.stage.replace("_", " ")}` : works);
      if (state.suspended) fact(facts, "Why", state.suspended);
      if (state.ride) fact(facts, "Ride", this.link({ kind: "ride", id: state.ride }));
      if (state.at) fact(facts, "Position", `${state.at.lat.toFixed(5)}, ${state.at.lon.toFixed(5)}`);
      if (state.age_ms !== undefined) fact(facts, "Seen", `${seconds(state.age_ms)} ago`);
      const path = `/v1/drivers/${encodeURIComponent(entity.id)}`;
      actions.append(
        state.suspended
          ? this.action("Reinstate", `Let ${entity.id} work again?`, `${path}/reinstate`, false)
          : this.action("Suspend…", `Keep ${entity.id} from work?`, `${path}/suspend`, true),
      );
    } else if (entity.kind === "ride") {
      fact(facts, "Stage", state.stage.replace("_", " "));
      fact(facts, "Rider", this.link({ kind: "rider", id: state.rider }));
      if (state.driver) fact(facts, "Driver", this.link({ kind: "driver", id: state.driver }));
      if (state.dropoff) fact(facts, "To", `${state.dropoff.lat.toFixed(5)}, ${state.dropoff.lon.toFixed(5)}`);
      fact(facts, "Class", state.class);
      fact(facts, "Asked", clock(state.requested_at));
      if (state.cancelled_by) fact(facts, "Called off by", state.cancelled_by);
      if (state.reason) fact(facts, "Because", state.reason);
      const path = `/v1/rides/${encodeURIComponent(entity.id)}`;
      const stage = state.stage;
      if (["en_route", "arrived"].includes(stage)) {
        const asks = `Take ${state.driver} off this ride and look for another driver?`;
        actions.append(this.action("Dispatch anew…", asks, `${path}/redispatch`, true));
      }
      if (["waiting", "offered", "en_route", "arrived"].includes(stage)) {
        actions.append(this.action("Call off…", "Call this ride off?", `${path}/cancel`, true));
      }
    } else {
      fact(facts, "Open ride", state.ride ? this.link({ kind: "ride", id: state.ride }) : "none");
    }
    this.fill(history, facts, actions);
  }

  /** What is shown: some parts, and the history under them. */
  private fill(history: History, ...parts: HTMLElement[]): void {
    const list = make("ol", "", "history");
    const wasOpen = new Set(
      [...document.querySelectorAll<HTMLDetailsElement>("#detail-body details[open]")].map((open) => open.dataset.key),
    );
    for (const past of [...history.past].reverse()) list.append(entry(past, wasOpen));
    const title = history.is_cut ? "History (the newest)" : "History";
    const body = find("detail-body");
    const scrolled = body.scrollTop;
    const focused = body.contains(document.activeElement) ? document.activeElement : null;
    body.replaceChildren(...parts, make("h3", title), list);
    body.scrollTop = scrolled;
    // Who works here by keyboard goes on where they were.
    if (!focused || focused === body) return;
    const same = [...body.querySelectorAll<HTMLElement>("button, summary")].find((now) => meant(now) === meant(focused));
    (same ?? body).focus({ preventScroll: true });
  }

  private link(entity: Exclude<Entity, { kind: "nodes" }>): HTMLElement {
    const link = make("button", entity.id, "link");
    link.addEventListener("click", () => void this.open(entity, true));
    return link;
  }

  /** A button that asks before it does anything. */
  private action(name: string, question: string, path: string, needsReason: boolean): HTMLElement {
    const button = make("button", name, "act");
    button.addEventListener("click", () => void this.confirm(question, path, needsReason));
    return button;
  }

  private async confirm(question: string, path: string, needsReason: boolean): Promise<void> {
    const dialog = find<HTMLDialogElement>("ask");
    const reason = find<HTMLInputElement>("ask-reason");
    const problem = find("ask-problem");
    find("ask-question").textContent = question;
    find("ask-reason-row").hidden = !needsReason;
    reason.required = needsReason;
    reason.value = "";
    problem.textContent = "";
    dialog.showModal();
    const form = find<HTMLFormElement>("ask-form");
    form.onsubmit = (event) => {
      event.preventDefault();
      void (async () => {
        try {
          await this.server.ask(path, needsReason ? { reason: reason.value.trim() } : {});
          dialog.close();
          await this.refresh();
        } catch (why) {
          if (!(why instanceof Refused || why instanceof Silent)) throw why;
          problem.textContent = why.message;
        }
      })();
    };
  }
}

/** What a button or a line of the history is about, from one rendering to the next. */
const meant = (element: Element) => element.closest("details")?.dataset.key ?? `button ${element.textContent}`;

/** One command or event, with all it says behind a click. */
function entry({ time, kind, record }: Past, wasOpen: Set<string | undefined>): HTMLElement {
  const item = make("li", "", kind);
  const details = document.createElement("details");
  const name = (record.type ?? "?").replace(/^.*?cabrank\.(.*)\.v\d+$/, "$1");
  const summary = make("summary");
  summary.append(make("time", clock(time)), make("span", name.replaceAll("_", " "), "name"));
  const by = kind === "command" && record.id ? record.id.split("/").slice(0, 2).join(" ") : "";
  const why = record.reason ?? record.data?.reason ?? record.data?.why;
  const said = [by, typeof why === "string" ? `“${why}”` : ""].filter(Boolean).join(" ");
  if (said) summary.append(make("span", said, "said"));
  details.dataset.key = `${time} ${kind} ${record.id ?? ""} ${name}`;
  details.open = wasOpen.has(details.dataset.key);
  details.append(summary, make("pre", JSON.stringify(record, null, 1)));
  item.append(details);
  return item;
}
