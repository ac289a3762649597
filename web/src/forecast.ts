// How many rides are expected where, in the next quarter hour: asked for and drawn while somebody wants to see it.

import { type Camera, toWorld } from "./camera";
import { find } from "./panel";
import type { Server } from "./server";

interface Horizon {
  minutes: number;
  expected: number;
  low: number;
  high: number;
}

interface ExpectedCell {
  cell: string;
  corners: [number, number][];
  predicted_demand: Horizon[];
  supply: number;
}

interface Expected {
  made?: string;
  confidence: number;
  cells: ExpectedCell[];
}

/** A cell narrower than this has no room for its numbers, pixels. */
const TEXT_PX = 56;
const EVERY_MS = 2_000;

const rides = (count: number) => count.toFixed(count < 9.95 ? 1 : 0);

export class Forecast {
  private expected: Expected = { confidence: 0, cells: [] };
  private askedAt = Number.NEGATIVE_INFINITY;

  /** Asks for what is seen, unless it was asked for just now. */
  async refresh(server: Server, camera: Camera, now: number): Promise<void> {
    if (now - this.askedAt < EVERY_MS) return;
    this.askedAt = now;
    this.expected = await server.read<Expected>(`/v1/map/forecast?${camera.query()}`);
    const busiest = this.expected.cells[0];
    const next = busiest?.predicted_demand[0];
    const hour = busiest?.predicted_demand.at(-1);
    document.body.dataset.forecast = String(this.expected.cells.length);
    find("forecast-told").textContent =
      next && hour
        ? `Busiest cell: ${rides(next.expected)} rides in ${next.minutes} min ` +
          `(${next.low} to ${next.high} with ${Math.round(this.expected.confidence * 100)} %), ` +
          `${rides(hour.expected)} in ${hour.minutes} min; ${busiest.supply} free cars.`
        : this.expected.made
          ? "No rides are expected here."
          : "No forecast has come yet.";
  }

  /** Shows that it is not asked for any more. */
  hide(): void {
    this.askedAt = Number.NEGATIVE_INFINITY;
    this.expected = { confidence: 0, cells: [] };
    delete document.body.dataset.forecast;
    find("forecast-told").textContent = "";
  }

  paint(context: CanvasRenderingContext2D, camera: Camera, fill: string, ink: string): void {
    const next = (cell: ExpectedCell) => cell.predicted_demand[0]?.expected ?? 0;
    const most = Math.max(1, ...this.expected.cells.map(next));
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    for (const cell of this.expected.cells) {
      const corners = cell.corners.map(([lat, lon]) => toWorld(lat, lon));
      const xs = corners.map((at) => camera.x(at));
      const ys = corners.map((at) => camera.y(at));
      context.beginPath();
      corners.forEach((_, n) => context.lineTo(xs[n] ?? 0, ys[n] ?? 0));
      context.closePath();
      context.globalAlpha = 0.06 + 0.44 * Math.sqrt(next(cell) / most);
      context.fillStyle = fill;
      context.fill();
      context.globalAlpha = 0.35;
      context.strokeStyle = fill;
      context.lineWidth = 1;
      context.stroke();
      context.globalAlpha = 1;
      if (Math.max(...xs) - Math.min(...xs) < TEXT_PX) continue;
      const middle = (all: number[]) => (Math.min(...all) + Math.max(...all)) / 2;
      context.fillStyle = ink;
      context.fillText(rides(next(cell)), middle(xs), middle(ys) + 4);
    }
    context.textAlign = "start";
  }
}
