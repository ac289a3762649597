// Builds what the gateway embeds into the directory that is named, or with --compare says what there differs from its source.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";

const compares = process.argv[2] === "--compare";
const directory = process.argv[compares ? 3 : 2] ?? "dist";

const scripts = await build({
  entryPoints: { map: "src/main.ts", api: "src/api.ts" },
  metafile: true,
  bundle: true,
  minify: true,
  charset: "utf8",
  format: "iife",
  target: "es2022",
  legalComments: "none",
  outdir: directory,
  write: false,
});
const styles = await build({
  entryPoints: ["map.css"],
  metafile: true,
  minify: true,
  target: "es2022",
  outdir: directory,
  write: false,
});
// deploy/sbom.py says that nothing of npm's is in what is embedded.
for (const input of [scripts, styles].flatMap(({ metafile }) => Object.keys(metafile.inputs))) {
  if (input.includes("node_modules")) {
    console.error(`${input} would be embedded: name it and its licence in deploy/sbom.py first`);
    process.exit(1);
  }
}
const files = new Map();
for (const { path, text } of [...scripts.outputFiles, ...styles.outputFiles]) {
  files.set(path.split("/").pop(), text);
}
for (const page of ["index.html", "api.html"]) files.set(page, await readFile(page, "utf8"));

let differing = 0;
for (const [name, text] of files) {
  const path = join(directory, name);
  if (!compares) {
    await writeFile(path, text);
  } else if ((await readFile(path, "utf8").catch(() => "")) !== text) {
    differing += 1;
    console.error(`web/${path} is not what its source builds: run npm run build in web/`);
  }
}
if (differing > 0) process.exit(1);
