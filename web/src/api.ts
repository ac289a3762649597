// Shows /openapi.json to a person.

interface Schema {
  $ref?: string;
  [key: string]: unknown;
}
interface Content {
  content?: Record<string, { schema?: Schema }>;
  description?: string;
}
interface Operation {
  summary?: string;
  description?: string;
  tags?: string[];
  parameters?: { name: string; in: string; required?: boolean; description?: string }[];
  requestBody?: Content;
  responses: Record<string, Content>;
}
interface OpenApi {
  info: { version: string };
  paths: Record<string, Record<string, Operation>>;
  components?: { schemas?: Record<string, Schema> };
}

const METHODS = ["get", "post", "put", "delete"];

function make(tag: string, text = "", className = ""): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function table(rows: [string, string][]): HTMLElement {
  const made = make("table");
  for (const cells of rows) {
    const row = make("tr");
    row.append(...cells.map((cell) => make("td", cell)));
    made.append(row);
  }
  return made;
}

function shapes(content: Content): string {
  const schemas = Object.values(content.content ?? {}).map((kind) => kind.schema?.$ref?.split("/").pop());
  return schemas.filter(Boolean).join(", ");
}

function operation(path: string, method: string, op: Operation): HTMLElement {
  const shown = make("article");
  const title = make("h3");
  title.append(make("span", method.toUpperCase(), "method"), path);
  shown.append(title, make("p", op.summary ?? ""), make("p", op.description ?? "", "said"));
  const rows: [string, string][] = (op.parameters ?? []).map(({ name, in: place, required, description }) => [
    name,
    `${place}${required ? "" : ", may be left out"}${description ? `: ${description}` : ""}`,
  ]);
  if (op.requestBody) rows.push(["body", shapes(op.requestBody)]);
  for (const [status, answer] of Object.entries(op.responses)) {
    const shape = shapes(answer);
    rows.push([status, `${answer.description ?? ""}${shape ? ` (${shape})` : ""}`]);
  }
  shown.append(table(rows));
  return shown;
}

async function show(): Promise<void> {
  const told = document.getElementById("api-told");
  const main = document.getElementById("api");
  if (!told || !main) return;
  const answer = await fetch("/openapi.json").catch(() => null);
  if (!answer?.ok) {
    told.textContent = "The server does not answer: load this page again.";
    return;
  }
  const api = (await answer.json()) as OpenApi;
  told.textContent = `Version ${api.info.version}`;
  const sections = new Map<string, HTMLElement[]>();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const method of METHODS) {
      const op = methods[method];
      if (!op) continue;
      const tag = op.tags?.[0] ?? "";
      sections.set(tag, [...(sections.get(tag) ?? []), operation(path, method, op)]);
    }
  }
  // What is open to everybody is least of interest.
  const ordered = [...sections].sort(([a], [b]) => Number(a === "Open") - Number(b === "Open"));
  for (const [tag, shown] of ordered) main.append(make("h2", tag), ...shown);
  main.append(make("h2", "Shapes"));
  for (const [name, schema] of Object.entries(api.components?.schemas ?? {})) {
    const shown = make("article");
    const details = document.createElement("details");
    details.append(make("summary", name), make("pre", JSON.stringify(schema, null, 1)));
    shown.append(details);
    main.append(shown);
  }
}

void show();
