// The last minutes as this page has seen them, to be watched again.
//
// Kept are the server's answers themselves, at most one a second: what lay outside of the view then is not there now. Positions
// of cars are in no log (a ping is worth nothing after some seconds), so nobody but who looked can show them again.

import { type Frame, readFrame } from "./frame";

/** How far back, ms of the wall clock, and how many bytes at most: the oldest go first. */
const KEPT_MS = 10 * 60_000;
const KEPT_BYTES = 64 << 20;
/** Answers nearer to each other than this are not all kept, ms. */
const APART_MS = 950;

interface Seen {
  at: number;
  bytes: ArrayBuffer;
}

export class Past {
  private seen: Seen[] = [];
  private bytes = 0;
  /** Where the page looks: the moment that is shown, and null for now. */
  private shown: number | null = null;
  private isPlaying = false;
  private lastStep = 0;

  get isLive(): boolean {
    return this.shown === null;
  }

  /** Milliseconds from the oldest to the newest. */
  get length(): number {
    return (this.seen.at(-1)?.at ?? 0) - (this.seen[0]?.at ?? 0);
  }

  /** How long ago what is shown was, ms. */
  get ago(): number {
    return this.shown === null ? 0 : Math.max(0, (this.seen.at(-1)?.at ?? 0) - this.shown);
  }

  keep(bytes: ArrayBuffer, now: number): void {
    const last = this.seen.at(-1);
    if (last && now - last.at < APART_MS) return;
    this.seen.push({ at: now, bytes });
    this.bytes += bytes.byteLength;
    while (this.seen.length > 1 && (this.bytes > KEPT_BYTES || now - (this.seen[0]?.at ?? now) > KEPT_MS)) {
      this.bytes -= this.seen.shift()?.bytes.byteLength ?? 0;
    }
  }

  /** Looks so many milliseconds back and goes on from there; 0: now. */
  goTo(ago: number): void {
    const newest = this.seen.at(-1)?.at;
    this.shown = ago <= 0 || newest === undefined ? null : newest - ago;
    this.isPlaying = true;
  }

  pause(): void {
    this.isPlaying = false;
  }

  play(): void {
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
    const newest = this.seen.at(-1);
    if (!newest || this.shown >= newest.at) {
      // It has caught up with now.
      this.shown = null;
      return null;
    }
    const shown = this.shown;
    const later = this.seen.findIndex((seen) => seen.at > shown);
    const found = this.seen[Math.max(0, later - 1)];
    return found ? readFrame(found.bytes) : null;
  }
}
