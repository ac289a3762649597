// Service areas, airports, pickup zones and points, as the server has them in force.

import { type World, toWorld } from "./camera";
import { find } from "./panel";
import type { Server } from "./server";

type Ring = [number, number][];

interface Feature {
  properties: { kind: string; name: string; zone?: string };
  geometry: { type: "MultiPolygon"; coordinates: Ring[][] } | { type: "Point"; coordinates: [number, number] };
}

interface Drawing {
  features: Feature[];
  /** What is wrong with the files, if they are not in force. */
  refused?: string;
}

/** A zone in the world's coordinates. */
export interface Zone {
  kind: string;
  name: string;
  /** The outline of each area and its holes. */
  areas: World[][][];
  /** Where its name stands. */
  middle: World;
}

/** Where riders of a zone are fetched. */
export interface Spot {
  name: string;
  at: World;
}

export class Zones {
  zones: Zone[] = [];
  spots: Spot[] = [];

  /** Asks anew; the browser's cache makes that a small question when nothing has changed. */
  async refresh(server: Server): Promise<void> {
    const drawing = await server.read<Drawing>("/v1/zones");
    this.zones = [];
    this.spots = [];
    for (const { properties, geometry } of drawing.features) {
      if (geometry.type === "Point") {
        const [lon, lat] = geometry.coordinates;
        this.spots.push({ name: properties.name, at: toWorld(lat, lon) });
        continue;
      }
      const areas = geometry.coordinates.map((rings) =>
        rings.map((ring) => ring.map(([lon, lat]) => toWorld(lat, lon))),
      );
      this.zones.push({ kind: properties.kind, name: properties.name, areas, middle: top(areas) });
    }
    const told = find("zones-refused");
    told.hidden = !drawing.refused;
    told.textContent = drawing.refused ? `The zones' files are not in force:\n${drawing.refused}` : "";
    document.body.dataset.zones = String(this.zones.length);
  }
}

/** The middle of the northern edge of the bounds: a name there hides little of the zone. */
function top(areas: World[][][]): World {
  const corners = areas.flatMap((rings) => rings[0] ?? []);
  const xs = corners.map(([x]) => x);
  return [(Math.min(...xs) + Math.max(...xs)) / 2, Math.min(...corners.map(([, y]) => y))];
}
