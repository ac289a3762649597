// What the page knows of the city between two answers, and how what moves is shown in between.

import { type World, toWorld } from "./camera";
import type { Frame, Ride } from "./frame";

/** A move takes as long as the driver took from ping to ping, within these bounds, ms. */
const GLIDE_MIN_MS = 300;
const GLIDE_MAX_MS = 4_000;
/** Farther than this (of the world's width, some 2 km) is no drive: the car is put there. */
const JUMP = 5e-5;

export interface Car {
  key: number;
  state: number;
  silent: boolean;
  from: World;
  to: World;
  moved: number;
  lasts: number;
}

export class City {
  cars = new Map<number, Car>();
  rides = new Map<string, Ride>();
  frame: Frame | null = null;

  take(frame: Frame, now: number): void {
    const cars = new Map<number, Car>();
    for (const { key, lat, lon, state, silent } of frame.seen) {
      const to = toWorld(lat, lon);
      const car = this.cars.get(key);
      if (!car) {
        cars.set(key, { key, state, silent, from: to, to, moved: now, lasts: 1_000 });
        continue;
      }
      if (car.to[0] !== to[0] || car.to[1] !== to[1]) {
        const here = where(car, now);
        const isJump = Math.hypot(here[0] - to[0], here[1] - to[1]) > JUMP;
        car.from = isJump ? to : here;
        car.to = to;
        car.lasts = Math.max(GLIDE_MIN_MS, Math.min(GLIDE_MAX_MS, now - car.moved));
        car.moved = now;
      }
      car.state = state;
      car.silent = silent;
      cars.set(key, car);
    }
    this.cars = cars;
    this.rides = new Map(frame.going.map((ride) => [ride.id, ride]));
    this.frame = frame;
  }
}

export function where(car: Car, now: number): World {
  const part = Math.min(1, (now - car.moved) / car.lasts);
  return [
    car.from[0] + (car.to[0] - car.from[0]) * part,
    car.from[1] + (car.to[1] - car.from[1]) * part,
  ];
}
