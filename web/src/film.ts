// Reads a film: drawings of the whole city one after another (docs/protocol.md, "Films").

const MARK = "CABFILM1";

/** The drawings, as they are answered by GET /v1/map, oldest first. */
export function readFilm(buffer: ArrayBuffer): Uint8Array[] {
  const mark = new TextDecoder().decode(new Uint8Array(buffer, 0, Math.min(MARK.length, buffer.byteLength)));
  if (mark !== MARK) throw new Error("this is no film");
  const data = new DataView(buffer);
  const drawings: Uint8Array[] = [];
  for (let at = MARK.length; at < buffer.byteLength; ) {
    const length = data.getUint32(at, true);
    drawings.push(new Uint8Array(buffer, at + 4, length));
    at += 4 + length;
  }
  return drawings;
}
