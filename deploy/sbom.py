#!/usr/bin/env python3
"""What is in the program, and under which licences? `deploy/sbom.py DIR` writes into DIR
  cabrank.cdx.json  CycloneDX 1.6: every crate and C library that is linked into it, its version, licence and checksum, who needs whom
  licences.txt      a table of them, and every licence text and notice as their authors ship them, each once
What is linked is asked of Cargo; nothing is built. The same source and toolchain give the same bytes. Needs Cargo and Python
3.11. Exit code 1 if a part names no licence, or a crate brings C of which nobody has said here whose it is.

Not in it: what the image takes from Debian (deploy/rootfs.sh ships those notices beside it), and npm packages: they build and
test the pages that are embedded, but none is in them (web/build.mjs refuses that)."""

import argparse
import collections
import html.parser
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import urllib.parse
import uuid

ROOT = pathlib.Path(__file__).parent.parent

# C that is linked, by the crate that links it: its name, its licence, the crate with its sources and where they lie there, where
# its version stands (None: behind the + of that crate's version), and its vendor and name where holes are told (CPE).
Library = collections.namedtuple("Library", "name licence crate where version cpe")
LIBRARIES = {
    "rdkafka-sys": [Library("librdkafka", "BSD-2-Clause AND Apache-2.0 AND BSD-3-Clause AND MIT AND Zlib", "rdkafka-sys", "librdkafka", None, "confluent:librdkafka")],
    "openssl-sys": [Library("openssl", "Apache-2.0", "openssl-src", "openssl", None, "openssl:openssl")],
    "libsqlite3-sys": [Library("sqlite", "blessing", "libsqlite3-sys", "sqlite3", ("sqlite3/sqlite3.h", 'SQLITE_VERSION +"(.+)"'), "sqlite:sqlite")],
    "libz-sys": [Library("zlib", "Zlib", "libz-sys", "src/zlib", ("src/zlib/zlib.h", 'ZLIB_VERSION "(.+)"'), "zlib:zlib")],
    "zstd-sys": [Library("zstd", "BSD-3-Clause OR GPL-2.0-only", "zstd-sys", "zstd", None, "facebook:zstandard")],
    # Parts of both at no release of theirs.
    "ring": [
        Library("boringssl", "Apache-2.0 AND ISC", "ring", ".", (), None),
        Library("fiat-crypto", "Apache-2.0", "ring", "third_party/fiat", (), None),
    ],
}
# Crates with C that is not linked, or is the crate's own.
NO_LIBRARY = {"signal-hook", "openssl-src"}
C_SOURCES = {".c", ".cc", ".cpp", ".S", ".s", ".asm", ".a", ".o"}
TEXTS = re.compile(r"(un)?licen[cs]e|copying|copyright|notice", re.IGNORECASE)


class Part:
    """Something that is linked. `licence` is an SPDX expression or None, `directory` where its texts lie."""

    def __init__(self, name, version, licence, directory, **of):
        self.name, self.version, self.licence, self.directory = name, version, licence, directory
        self.purl, self.cpe, self.sha256, self.home, self.needs = (of.get(key) for key in ("purl", "cpe", "sha256", "home", "needs"))
        self.ref = f"{name}@{version}" if version else name
        self.needs = sorted(self.needs or [])

    def component(self):
        licences = {"licenses": [{"expression": self.licence}]} if self.licence else {}
        told = {"version": self.version, **licences, "purl": self.purl, "cpe": self.cpe}
        if self.sha256:
            told["hashes"] = [{"alg": "SHA-256", "content": self.sha256}]
        if self.home:
            told["externalReferences"] = [{"type": "vcs", "url": self.home}]
        return {"type": "library", "bom-ref": self.ref, "name": self.name, **{key: value for key, value in told.items() if value}}

    def texts(self):
        """The files that tell of licences: beside its sources, or in a directory of theirs."""
        if not self.directory:
            return []
        beside = [path for path in sorted(self.directory.iterdir()) if TEXTS.match(path.name)]
        files = [file for path in beside for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        texts = [file.read_text(errors="replace") for file in files if file.is_file() and file.suffix not in (".rs", ".py", ".c", ".h")]
        if self.licence == "blessing":
            # Its licence is the comment at the head of its sources.
            texts.append((self.directory / "sqlite3.h").read_text().split("**********")[0].lstrip("/* \n"))
        return texts


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def expression(licence):
    """As SPDX has it; crates of old write `MIT/Apache-2.0`."""
    return re.sub(r" */ *", " OR ", licence) if licence else None


def linked(features, target):
    """The program, and all that is linked into it."""
    asked = ["--locked", "--features", features]
    found = json.loads(run("cargo", "metadata", "--format-version=1", "--filter-platform", target, *asked))
    tree = run("cargo", "tree", "-p=cabrank", "-e=no-dev,no-build,no-proc-macro", "--prefix=none", "--format={p}", "--target", target, *asked)
    names = {tuple(line.split()[:2]) for line in tree.splitlines()}
    crates = {of["id"]: of for of in found["packages"]}
    inside = {id for id, of in crates.items() if (of["name"], "v" + of["version"]) in names}
    checksums = {(of["name"], of["version"]): of.get("checksum") for of in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    needs = {
        node["id"]: {
            f"{crates[dep['pkg']]['name']}@{crates[dep['pkg']]['version']}"
            for dep in node["deps"]
            if dep["pkg"] in inside and any(kind["kind"] is None for kind in dep["dep_kinds"])
        }
        for node in found["resolve"]["nodes"]
    }
    directory_of = {of["name"]: pathlib.Path(of["manifest_path"]).parent for of in crates.values()}
    version_of = {of["name"]: of["version"] for of in crates.values()}
    program, parts, strangers = None, [], []
    for id in sorted(inside):
        of = crates[id]
        name, directory = of["name"], pathlib.Path(of["manifest_path"]).parent
        libraries = [library_part(library, directory_of, version_of) for library in LIBRARIES.get(name, [])]
        is_ours = of["source"] is None
        part = Part(
            name, of["version"], expression(of["license"]), ROOT if is_ours else directory, home=of["repository"],
            needs=needs[id] | {library.ref for library in libraries}, sha256=checksums[name, of["version"]],
            purl=None if is_ours else f"pkg:cargo/{name}@{urllib.parse.quote(of['version'])}")
        if not libraries and not is_ours and name not in NO_LIBRARY and brings_c(directory):
            strangers.append(part.ref)
        if name == "cabrank":
            program = part
        else:
            parts.append(part)
        parts += libraries
    return program, [*parts, standard_library()], strangers


def brings_c(directory):
    return any(path.suffix in C_SOURCES for path in directory.rglob("*"))


def library_part(library, directory_of, version_of):
    source = directory_of[library.crate]
    if library.version is None:
        version = version_of[library.crate].partition("+")[2].removeprefix("zstd.")
    elif library.version:
        file, pattern = library.version
        version = re.search(pattern, (source / file).read_text())[1]
    else:
        version = None
    return Part(
        library.name, version, library.licence, source / library.where,
        purl=f"pkg:generic/{library.name}" + (f"@{version}" if version else ""),
        cpe=library.cpe and f"cpe:2.3:a:{library.cpe}:{version}:*:*:*:*:*:*:*")


class Words(html.parser.HTMLParser):
    """The words of a page."""

    def __init__(self):
        super().__init__()
        self.said, self.silent = [], False

    def handle_starttag(self, tag, _):
        self.silent = tag in ("title", "style")

    def handle_data(self, data):
        if not self.silent:
            self.said.append(data)


def standard_library():
    """Rust's own, with what it is made of."""
    part = Part("rust-std", run("rustc", "--version").split()[1], "Apache-2.0 OR MIT", None, home="https://github.com/rust-lang/rust")
    notices = pathlib.Path(run("rustc", "--print", "sysroot").strip()) / "share/doc/rust/COPYRIGHT-library.html"
    if notices.exists():
        words = Words()
        words.feed(notices.read_text())
        text = re.sub(r"[ \t]*\n\s*\n\s*", "\n\n", "".join(words.said))
        part.texts = lambda: [text]
    return part


def sbom(program, parts, features, target):
    whole = program.component() | {"type": "application"}
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": whole,
            "properties": [{"name": "cabrank:features", "value": features}, {"name": "cabrank:target", "value": target}],
        },
        "components": [part.component() for part in parts],
        "dependencies": [{"ref": part.ref, "dependsOn": part.needs} for part in (program, *parts)],
    }
    # No date and nothing by chance: who builds the same has the same file.
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bom, sort_keys=True))
    return {"serialNumber": f"urn:uuid:{number}", **bom}


def licences(program, parts, features, target):
    """The report, for people."""
    said = [
        f"{program.name} {program.version}: {program.licence}. Linked into it for {target}, with {features or 'no features'}:",
        "",
        *(f"{part.name} {part.version or '(parts)'}: {part.licence or 'NO LICENCE IS NAMED'}" for part in parts if part.directory != ROOT),
    ]
    texts, who, without = {}, collections.defaultdict(list), []
    for part in (program, *(part for part in parts if part.directory != ROOT)):
        found = part.texts()
        if not found:
            without.append(part)
        for text in found:
            # The same text may be set otherwise.
            key = " ".join(text.split())
            texts.setdefault(key, text.strip("\n"))
            if part.ref not in who[key]:
                who[key].append(part.ref)
    said += ["", "Ship no text of their own, and are under the standard text of the licence named above:"]
    said += [f"{part.ref}: {part.licence}{f', {part.home}' if part.home else ''}" for part in without]
    for key, text in texts.items():
        said += ["", "=" * 100, ", ".join(who[key]), "-" * 100, text]
    return "\n".join(said) + "\n"


def complaints(parts, strangers):
    for part in parts:
        if not part.licence:
            yield f"{part.ref} names no licence"
    for ref in strangers:
        yield f"{ref} brings C: say in deploy/sbom.py whose it is"


def main():
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("dir", metavar="DIR", type=pathlib.Path)
    told.add_argument("--features", default="kafka-tls", help="the program's, as it is built (the image's: %(default)s)")
    told.add_argument("--target", help="which machine it is for (this one)")
    args = told.parse_args()
    target = args.target or re.search("host: (.+)", run("rustc", "-vV"))[1]
    program, parts, strangers = linked(args.features, target)
    args.dir.mkdir(parents=True, exist_ok=True)
    bom = json.dumps(sbom(program, parts, args.features, target), indent=1, ensure_ascii=False)
    (args.dir / "cabrank.cdx.json").write_text(bom + "\n")
    (args.dir / "licences.txt").write_text(licences(program, parts, args.features, target))
    wrong = list(complaints((program, *parts), strangers))
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    crates = sum(bool(part.purl and part.purl.startswith("pkg:cargo")) for part in parts)
    libraries = sum(bool(part.purl and part.purl.startswith("pkg:generic")) for part in parts)
    print(f"{args.dir}: cabrank {program.version}, {crates} crates and {libraries} C libraries are linked into it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
