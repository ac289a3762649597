// Draws the city on the canvas, some sixty times a second.

import { type Camera, type World, toWorld } from "./camera";
import { type Car, type City, where } from "./city";
import type { Ride } from "./frame";
import { Forecast } from "./forecast";
import { Zones } from "./zones";

export interface Cell {
  cell: string;
  corners: [number, number][];
  free: number;
  waiting: number;
  asked: number;
}

/** Which numbers the cells show. */
export type CellsShow = "none" | "supply" | "demand" | "balance" | "forecast";

/** Colours come from the style sheet, so that light and dark are said in one place. */
interface Colours {
  ground: string;
  grid: string;
  ink: string;
  soft: string;
  halo: string;
  states: string[];
  waiting: string;
  supply: string;
  demand: string;
  zone: string;
}

export interface Selected {
  driver: number | null;
  ride: string | null;
}

/** A place on the canvas, pixels. */
type Spot = [number, number];

/** States of drivers; those that matter most are drawn last. */
const DRAWN_LAST = [0, 1, 4, 3, 2];
/** How large a driver is drawn, by state. */
const SIZES = [0.7, 0.9, 1.15, 1.1, 1];
/** Cars of a larger radius are drawn round, pixels. */
const ROUND_PX = 3.5;

const STAGE_WAITING = 0;
const STAGE_OFFERED = 1;
const STAGE_STARTED = 4;

export class Painter {
  cells: Cell[] = [];
  show: CellsShow = "balance";
  lines = true;
  offline = true;
  showZones = true;
  readonly zones = new Zones();
  readonly forecast = new Forecast();
  private readonly context: CanvasRenderingContext2D;
  private colours: Colours;
  private tiles = new Map<string, HTMLImageElement>();

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly camera: Camera,
    private readonly tileUrl: string,
  ) {
    const context = canvas.getContext("2d", { alpha: false });
    if (!context) throw new Error("this browser has no canvas");
    this.context = context;
    this.colours = readColours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.colours = readColours();
    });
  }

  /** The page's size has changed. */
  fitWindow(): void {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    this.camera.width = clientWidth;
    this.camera.height = clientHeight;
  }

  paint(city: City, selected: Selected, now: number): void {
    const { context, camera, colours } = this;
    const ratio = this.canvas.width / Math.max(1, camera.width);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = colours.ground;
    context.fillRect(0, 0, camera.width, camera.height);
    if (this.tileUrl) this.paintTiles();
    else this.paintGrid();
    if (this.showZones) this.paintZones();
    if (this.show === "forecast") this.forecast.paint(context, camera, colours.demand, colours.ink);
    else if (this.show !== "none") this.paintCells();
    if (this.lines) this.paintLines(city, now);
    this.paintRiders(city, now);
    this.paintCars(city, now);
    this.paintSelected(city, selected, now);
    this.paintScale();
  }

  private paintGrid(): void {
    const { context, camera, colours } = this;
    // Lines some hundred pixels apart, at round parts of the world.
    const step = 2 ** -Math.round(Math.log2(camera.scale / 140));
    const [left, top] = camera.at(0, 0);
    const [right, bottom] = camera.at(camera.width, camera.height);
    context.strokeStyle = colours.grid;
    context.lineWidth = 1;
    context.beginPath();
    for (let x = Math.ceil(left / step) * step; x < right; x += step) {
      const at = Math.round(camera.x([x, 0])) + 0.5;
      context.moveTo(at, 0);
      context.lineTo(at, camera.height);
    }
    for (let y = Math.ceil(top / step) * step; y < bottom; y += step) {
      const at = Math.round(camera.y([0, y])) + 0.5;
      context.moveTo(0, at);
      context.lineTo(camera.width, at);
    }
    context.stroke();
  }

  private paintTiles(): void {
    const { context, camera } = this;
    const z = Math.max(0, Math.min(19, Math.round(camera.zoom)));
    const count = 2 ** z;
    const size = camera.scale / count;
    const [left, top] = camera.at(0, 0);
    const [right, bottom] = camera.at(camera.width, camera.height);
    for (let x = Math.floor(left * count); x <= right * count; x++) {
      for (let y = Math.max(0, Math.floor(top * count)); y < Math.min(count, bottom * count); y++) {
        const image = this.tile(z, ((x % count) + count) % count, y);
        if (image.complete && image.naturalWidth > 0) {
          const at: World = [x / count, y / count];
          context.drawImage(image, camera.x(at), camera.y(at), size + 0.5, size + 0.5);
        }
      }
    }
  }

  private tile(z: number, x: number, y: number): HTMLImageElement {
    const name = `${z}/${x}/${y}`;
    let image = this.tiles.get(name);
    if (!image) {
      if (this.tiles.size > 500) this.tiles.clear();
      image = new Image();
      image.src = this.tileUrl
        .replace("{z}", String(z))
        .replace("{x}", String(x))
        .replace("{y}", String(y));
      this.tiles.set(name, image);
    }
    return image;
  }

  private paintCells(): void {
    const { context, camera, colours } = this;
    const most = Math.max(1, ...this.cells.map((cell) => Math.max(cell.free, cell.asked)));
    for (const cell of this.cells) {
      const supply = Math.sqrt(cell.free / most);
      const demand = Math.sqrt((cell.asked + cell.waiting) / most);
      const strength =
        this.show === "supply" ? supply : this.show === "demand" ? demand : Math.abs(demand - supply);
      if (strength < 0.02) continue;
      const isDemand = this.show === "demand" || (this.show === "balance" && demand > supply);
      context.beginPath();
      cell.corners.forEach(([lat, lon], n) => {
        const at = toWorld(lat, lon);
        if (n === 0) context.moveTo(camera.x(at), camera.y(at));
        else context.lineTo(camera.x(at), camera.y(at));
      });
      context.closePath();
      context.globalAlpha = Math.min(0.5, 0.08 + 0.42 * strength);
      context.fillStyle = isDemand ? colours.demand : colours.supply;
      context.fill();
      context.globalAlpha = 0.25;
      context.strokeStyle = context.fillStyle;
      context.lineWidth = 1;
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  private paintZones(): void {
    const { context, camera, colours } = this;
    context.strokeStyle = colours.zone;
    context.fillStyle = colours.zone;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    for (const { kind, name, areas, middle } of this.zones.zones) {
      context.beginPath();
      for (const ring of areas.flat()) {
        ring.forEach((at, n) => {
          if (n === 0) context.moveTo(camera.x(at), camera.y(at));
          else context.lineTo(camera.x(at), camera.y(at));
        });
        context.closePath();
      }
      const isArea = kind === "service_area";
      if (!isArea) {
        context.globalAlpha = 0.12;
        context.fill("evenodd");
      }
      context.globalAlpha = 0.8;
      context.lineWidth = isArea ? 2.5 : 1.5;
      context.setLineDash(isArea ? [10, 4, 2, 4] : []);
      context.stroke();
      context.setLineDash([]);
      context.globalAlpha = 1;
      if (!isArea && camera.zoom >= 12) context.fillText(name, camera.x(middle), camera.y(middle) - 5);
    }
    context.globalAlpha = 1;
    for (const { name, at } of this.zones.spots) {
      const spot = this.spot(at, 80);
      if (!spot || camera.zoom < 12) continue;
      const [x, y] = spot;
      // A diamond, so that it is not taken for a car or a rider.
      context.beginPath();
      context.moveTo(x, y - 5);
      context.lineTo(x + 5, y);
      context.lineTo(x, y + 5);
      context.lineTo(x - 5, y);
      context.closePath();
      context.fill();
      if (camera.zoom >= 14.5) context.fillText(name, x, y + 18);
    }
    context.textAlign = "start";
  }

  private paintLines(city: City, now: number): void {
    const { context, camera, colours } = this;
    for (const isStarted of [false, true]) {
      context.beginPath();
      for (const ride of city.rides.values()) {
        if ((ride.stage === STAGE_STARTED) !== isStarted || ride.driver === null) continue;
        const to = isStarted ? ride.dropoff : ride.pickup;
        if (!to) continue;
        const from = carOf(city, ride, now);
        const goal = toWorld(...to);
        context.moveTo(camera.x(from), camera.y(from));
        context.lineTo(camera.x(goal), camera.y(goal));
      }
      context.strokeStyle = (isStarted ? colours.states[4] : colours.states[3]) ?? colours.ink;
      // Fainter and they could not be told from the ground (`test/looks.mjs`).
      context.globalAlpha = isStarted ? 0.8 : 0.85;
      context.lineWidth = isStarted ? 1 : 1.5;
      // Dashes run from the car to where it goes.
      context.setLineDash(isStarted ? [3, 9] : [7, 5]);
      context.lineDashOffset = -(now / 40) % 12;
      context.stroke();
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  private paintRiders(city: City, now: number): void {
    const { context, colours } = this;
    const waiting: Spot[] = [];
    const offered: Spot[] = [];
    const coming: Spot[] = [];
    for (const ride of city.rides.values()) {
      if (ride.stage >= STAGE_STARTED) continue;
      const spot = this.spot(toWorld(...ride.pickup), 20);
      if (!spot) continue;
      (ride.stage === STAGE_WAITING ? waiting : ride.stage === STAGE_OFFERED ? offered : coming).push(spot);
    }
    const beat = (now % 1_400) / 1_400;
    context.globalAlpha = 1 - beat;
    this.rings(waiting, 4 + 10 * beat, colours.waiting, 1.5, null);
    context.globalAlpha = 1;
    this.rings(coming, 3.5, colours.states[3] ?? colours.ink, 1.5, colours.halo);
    this.rings(offered, 4.5, colours.waiting, 2, colours.halo);
    this.rings(waiting, 4.5, colours.waiting, 2.5, colours.halo);
  }

  /** Many circles of one kind in one stroke: by far the cheapest way to draw thousands. */
  private rings(spots: Spot[], radius: number, colour: string, width: number, fill: string | null): void {
    const { context } = this;
    context.beginPath();
    for (const [x, y] of spots) {
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }

  /** Where a place is on the canvas, if it is on it or at most `margin` pixels beside it. */
  private spot(at: World, margin: number): Spot | null {
    const { camera } = this;
    const x = camera.x(at);
    const y = camera.y(at);
    const isSeen = x > -margin && y > -margin && x < camera.width + margin && y < camera.height + margin;
    return isSeen ? [x, y] : null;
  }

  private paintCars(city: City, now: number): void {
    const { context, colours } = this;
    const size = Math.max(3, Math.min(11, (this.camera.zoom - 8.5) * 1.5));
    const seen: Spot[][] = DRAWN_LAST.map(() => []);
    const silent: Spot[][] = DRAWN_LAST.map(() => []);
    for (const car of city.cars.values()) {
      if (car.state === 0 && !this.offline) continue;
      const spot = this.spot(where(car, now), 9);
      if (spot) (car.silent ? silent : seen)[car.state]?.push(spot);
    }
    for (const state of DRAWN_LAST) {
      const colour = colours.states[state] ?? colours.ink;
      const spots = seen[state] ?? [];
      const radius = (size * (SIZES[state] ?? 1)) / 2;
      if (radius > ROUND_PX) this.rings(spots, radius, colours.halo, 1, colour);
      else {
        // Too small for a circle to be told from two rectangles, and those cost a third.
        context.fillStyle = colour;
        const [long, short] = [radius, radius * 0.6];
        for (const [x, y] of spots) {
          context.fillRect(x - long, y - short, 2 * long, 2 * short);
          context.fillRect(x - short, y - long, 2 * short, 2 * long);
        }
      }
      this.rings(silent[state] ?? [], radius, colour, 1.5, colours.halo);
    }
  }

  private paintSelected(city: City, selected: Selected, now: number): void {
    const { context, camera, colours } = this;
    const car = selected.driver === null ? undefined : city.cars.get(selected.driver);
    const ride = selected.ride === null ? undefined : city.rides.get(selected.ride);
    const places: World[] = [];
    if (car) places.push(where(car, now));
    if (ride) places.push(toWorld(...ride.pickup));
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    for (const at of places) {
      context.beginPath();
      context.arc(camera.x(at), camera.y(at), 12 + 1.5 * Math.sin(now / 200), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  private paintScale(): void {
    const { context, camera, colours } = this;
    const metres = camera.metres() * 120;
    const power = 10 ** Math.floor(Math.log10(metres));
    const round = [5, 2, 1].map((n) => n * power).find((n) => n <= metres) ?? power;
    const wide = round / camera.metres();
    const [x, y] = [16, camera.height - 18];
    context.strokeStyle = colours.soft;
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(x, y - 5);
    context.lineTo(x, y);
    context.lineTo(x + wide, y);
    context.lineTo(x + wide, y - 5);
    context.stroke();
    context.fillStyle = colours.soft;
    context.font = "12px system-ui, sans-serif";
    context.fillText(round >= 1_000 ? `${round / 1_000} km` : `${round} m`, x + 4, y - 5);
  }
}

/** Where the ride's car is: where it is drawn if it is, else where the server says. */
function carOf(city: City, ride: Ride, now: number): World {
  const car: Car | undefined = ride.driver === null ? undefined : city.cars.get(ride.driver);
  return car ? where(car, now) : toWorld(...ride.car);
}

function readColours(): Colours {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string) => style.getPropertyValue(`--${name}`).trim();
  return {
    ground: of("ground"),
    grid: of("grid"),
    ink: of("ink"),
    soft: of("soft"),
    halo: of("halo"),
    states: ["offline", "free", "held", "pickup", "riding"].map(of),
    waiting: of("waiting"),
    supply: of("free"),
    demand: of("waiting"),
    zone: of("zone"),
  };
}
