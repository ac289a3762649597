// What was, to be watched again: the last minutes of a city, or a film of a simulation or a replay.
//
// The last minutes begin with what the server reads back from its log (`GET /v1/map/film`); from then on the server's answers
// themselves are kept, at most one a second: what lay outside of the view then is not there now.

import { type Frame, readFrame, timeOf } from "./frame";

/** How many answers and bytes are kept: the oldest go first. A film is kept whole. */
const KEPT = 1_200;
const KEPT_BYTES = 64 << 20;
/** Answers nearer to each other than this are not all kept, ms of the city's time. */
const APART_MS = 950;

interface Seen {
  /** The city's time. */
  at: number;
  bytes: Uint8Array;
}

export class Past {
  private seen: Seen[] = [];
  private bytes = 0;
  /** Where the page looks: the moment that is shown, and null for now. */
  private shown: number | null = null;
  private isPlaying = false;
  private lastStep = 0;

  /** A film has no now: it stops at its end. */
  constructor(private readonly isFilm: boolean) {}

  get isLive(): boolean {
    return this.shown === null;
  }

  private get newest(): number {
    return this.seen.at(-1)?.at ?? 0;
  }

  /** Milliseconds from the oldest to the newest. */
  get length(): number {
    return this.newest - (this.seen[0]?.at ?? 0);
  }

  /** How long ago what is shown was, ms. */
  get ago(): number {
    return this.shown === null ? 0 : Math.max(0, this.newest - this.shown);
  }

  keep(bytes: Uint8Array): void {
    const at = timeOf(bytes);
    if (this.seen.length > 0 && at - this.newest < APART_MS) return;
    this.seen.push({ at, bytes });
    this.bytes += bytes.byteLength;
    while (this.seen.length > 1 && (this.bytes > KEPT_BYTES || this.seen.length > KEPT)) this.forgetOldest();
  }

  private forgetOldest(): void {
    this.bytes -= this.seen.shift()?.bytes.byteLength ?? 0;
  }

  /** Puts drawings before all that is kept, as far as they are older. */
  prepend(drawings: Uint8Array[]): void {
    const first = this.seen[0]?.at ?? Number.POSITIVE_INFINITY;
    const older = drawings.map((bytes) => ({ at: timeOf(bytes), bytes })).filter((seen) => seen.at < first);
    this.seen.unshift(...older);
    for (const { bytes } of older) this.bytes += bytes.byteLength;
    if (this.isFilm) this.shown = this.seen[0]?.at ?? null;
  }

  /** Looks so many milliseconds back and goes on from there; 0: now. */
  goTo(ago: number): void {
    const isNow = !this.isFilm && (ago <= 0 || this.seen.length === 0);
    this.shown = isNow ? null : this.newest - ago;
    this.isPlaying = true;
  }

  pause(): void {
    this.isPlaying = false;
  }

  play(): void {
    if (this.isFilm && this.ago <= 0) this.goTo(this.length);
    this.isPlaying = true;
  }

  get plays(): boolean {
    return this.isPlaying;
  }

  /** Lets `speed` times the time pass that has passed since the last call; what is to be shown then, if it is the past. */
  step(now: number, speed: number): Frame | null {
    const passed = Math.min(1_000, now - this.lastStep);
    this.lastStep = now;
    if (this.shown === null) return null;
    if (this.isPlaying) this.shown += passed * speed;
    if (this.shown >= this.newest) {
      if (!this.isFilm) {
        // It has caught up with now.
        this.shown = null;
        return null;
      }
      this.shown = this.newest;
      this.isPlaying = false;
    }
    const shown = this.shown;
    const later = this.seen.findIndex((seen) => seen.at > shown);
    const found = later < 0 ? this.seen.at(-1) : this.seen[Math.max(0, later - 1)];
    return found ? readFrame(found.bytes) : null;
  }
}
