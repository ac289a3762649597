// Where on Earth the page looks: Web Mercator, as tile servers use it.

/** A place as x and y of the whole world, each 0 to 1. */
export type World = [number, number];

const LAT_MAX = 85;
const ZOOM_MIN = 3;
const ZOOM_MAX = 19;

export function toWorld(lat: number, lon: number): World {
  const clipped = Math.max(-LAT_MAX, Math.min(LAT_MAX, lat)) * (Math.PI / 180);
  return [(lon + 180) / 360, (1 - Math.asinh(Math.tan(clipped)) / Math.PI) / 2];
}

function toLatLon([x, y]: World): [number, number] {
  return [Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * (180 / Math.PI), x * 360 - 180];
}

export class Camera {
  center: World = toWorld(37.7749, -122.4194);
  zoom = 12;
  width = 1;
  height = 1;

  /** Pixels the whole world is wide. */
  get scale(): number {
    return 256 * 2 ** this.zoom;
  }

  x(world: World): number {
    return (world[0] - this.center[0]) * this.scale + this.width / 2;
  }

  y(world: World): number {
    return (world[1] - this.center[1]) * this.scale + this.height / 2;
  }

  at(x: number, y: number): World {
    return [
      this.center[0] + (x - this.width / 2) / this.scale,
      this.center[1] + (y - this.height / 2) / this.scale,
    ];
  }

  pan(dx: number, dy: number): void {
    this.center = [
      (((this.center[0] - dx / this.scale) % 1) + 1) % 1,
      Math.max(0, Math.min(1, this.center[1] - dy / this.scale)),
    ];
  }

  /** Comes nearer by `steps` while the place under (x, y) stays there. */
  zoomAt(x: number, y: number, steps: number): void {
    const fixed = this.at(x, y);
    this.zoom = Math.max(ZOOM_MIN, Math.min(ZOOM_MAX, this.zoom + steps));
    this.center = [
      fixed[0] - (x - this.width / 2) / this.scale,
      fixed[1] - (y - this.height / 2) / this.scale,
    ];
  }

  /** Shows all of it. */
  fit([south, west, north, east]: [number, number, number, number]): void {
    const low = toWorld(south, west);
    const high = toWorld(north, east);
    this.center = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
    const wide = Math.max(high[0] - low[0], 1e-5) * 256;
    const tall = Math.max(low[1] - high[1], 1e-5) * 256;
    const zoom = Math.log2(Math.min((this.width * 0.9) / wide, (this.height * 0.9) / tall));
    this.zoom = Math.max(ZOOM_MIN, Math.min(16, zoom));
  }

  /** The query of what is seen, with a margin so that what comes in is there already. */
  query(): string {
    const [north, west] = toLatLon(this.at(-0.15 * this.width, -0.15 * this.height));
    const [south, east] = toLatLon(this.at(1.15 * this.width, 1.15 * this.height));
    const turn = (lon: number) => ((((lon + 180) % 360) + 360) % 360) - 180;
    const whole = east - west >= 360;
    const side = (name: string, degrees: number) => `${name}=${degrees.toFixed(5)}`;
    return [
      side("south", Math.max(-90, south)),
      side("west", whole ? -180 : turn(west)),
      side("north", Math.min(90, north)),
      side("east", whole ? 180 : turn(east)),
    ].join("&");
  }

  /** Metres a pixel shows in the middle. */
  metres(): number {
    const [lat] = toLatLon(this.center);
    return (40_075_016 * Math.cos((lat * Math.PI) / 180)) / this.scale;
  }
}
