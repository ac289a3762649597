// Reads a drawing, an answer of GET /v1/map: the layout of docs/protocol.md, "The map".

/** How a driver is drawn, by the number in the answer. */
export const DRIVER_STATES = ["offline", "free", "held", "to pickup", "with rider"] as const;
/** Where a ride is in its life, by the number in the answer. */
export const RIDE_STAGES = ["waiting", "offered", "en route", "arrived", "started"] as const;

/** The view holds more than an answer may. */
const TOO_MANY = 1;
const SILENT = 0x80;
const NOBODY = 0xffffffff;
const TILE_DEGREES = 0.02;

export interface Driver {
  key: number;
  lat: number;
  lon: number;
  state: number;
  silent: boolean;
}

export interface Ride {
  id: string;
  stage: number;
  pickup: [number, number];
  dropoff: [number, number] | null;
  /** The driver's key, and where the driver is. */
  driver: number | null;
  car: [number, number];
}

export interface Frame {
  tooMany: boolean;
  tickMs: number;
  number: number;
  time: number;
  /** South, west, north, east of nearly everything; null for an empty city. */
  bounds: [number, number, number, number] | null;
  drivers: number[];
  silent: number;
  rides: number[];
  seen: Driver[];
  going: Ride[];
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The city's time of a drawing, Unix ms. */
export const timeOf = (bytes: Uint8Array): number => Number(viewOf(bytes).getBigInt64(8, true));

export function readFrame(bytes: Uint8Array): Frame {
  const data = viewOf(bytes);
  if (data.getUint8(0) !== 1) throw new Error("the server speaks another layout: reload the page");
  let at = 16;
  const u32 = () => data.getUint32((at += 4) - 4, true);
  const e7 = () => data.getInt32((at += 4) - 4, true) / 1e7;
  const place = (): [number, number] => [e7(), e7()];
  const bounds: [number, number, number, number] = [e7(), e7(), e7(), e7()];
  const counts = Array.from({ length: 11 }, u32);
  const seen: Driver[] = [];
  for (let tiles = u32(); tiles > 0; tiles--) {
    const row = data.getInt16(at, true);
    const column = data.getInt16(at + 2, true);
    at += 4;
    for (let n = u32(); n > 0; n--) {
      const state = data.getUint8(at + 8);
      seen.push({
        key: data.getUint32(at, true),
        lat: (row + data.getUint16(at + 4, true) / 65536) * TILE_DEGREES,
        lon: (column + data.getUint16(at + 6, true) / 65536) * TILE_DEGREES,
        state: state & ~SILENT,
        silent: (state & SILENT) !== 0,
      });
      at += 9;
    }
  }
  // A ride may stand in two tiles: where it begins and where its car is.
  const going = new Map<string, Ride>();
  for (let n = u32(); n > 0; n--) {
    const offset = data.getBigUint64(at + 4, true);
    const id = `${data.getUint16(at, true)}-${data.getUint16(at + 2, true)}-${offset}`;
    const stage = data.getUint8(at + 12);
    const hasDropoff = data.getUint8(at + 13) !== 0;
    at += 14;
    const pickup = place();
    const dropoff = place();
    const driver = u32();
    const car = place();
    going.set(id, {
      id,
      stage,
      pickup,
      dropoff: hasDropoff ? dropoff : null,
      driver: driver === NOBODY ? null : driver,
      car,
    });
  }
  return {
    tooMany: (data.getUint8(1) & TOO_MANY) !== 0,
    tickMs: data.getUint16(2, true),
    number: data.getUint32(4, true),
    time: Number(data.getBigInt64(8, true)),
    bounds: bounds.some((side) => side !== 0) ? bounds : null,
    drivers: counts.slice(0, 5),
    silent: counts[5] ?? 0,
    rides: counts.slice(6),
    seen,
    going: [...going.values()],
  };
}
