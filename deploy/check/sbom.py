"""Are the SBOM and the licence report in DIR in order? `sbom.py DIR PROGRAM`: valid CycloneDX, of the version that PROGRAM
tells, each licence an SPDX one, each part in the report, and each crate whose sources are named in PROGRAM (its panics and
line numbers name them) in the SBOM. Also that deploy/sbom.py complains where it must."""

import json
import pathlib
import re
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression, is_supported_id
from cyclonedx.validation.json import JsonStrictValidator

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import sbom

LIBRARIES = {"boringssl", "fiat-crypto", "librdkafka", "openssl", "sqlite", "zlib", "zstd"}


def look(directory, program):
    text, report = (pathlib.Path(directory, name).read_text() for name in ("cabrank.cdx.json", "licences.txt"))
    invalid = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if invalid:
        yield f"no valid CycloneDX: {str(invalid).splitlines()[0]}"
        return
    bom = json.loads(text)
    version, told = bom["metadata"]["component"]["version"], subprocess.check_output([program, "--version"], text=True)
    if told.split()[:2] != ["cabrank", version]:
        yield f"it is of version {version}, and the program says {told}"
    parts = bom["components"]
    for part in parts:
        licence = part["licenses"][0]["expression"] if part.get("licenses") else None
        if not licence or not (is_expression(licence) or is_supported_id(licence)):
            yield f"{part['bom-ref']}: {licence} is no licence that SPDX knows"
        if part.get("purl") and f"\n{part['name']} {part.get('version', '(parts)')}: {licence}\n" not in report:
            yield f"{part['bom-ref']} is not in the report"
    missing = LIBRARIES - {part["name"] for part in parts}
    if missing:
        yield f"without {', '.join(sorted(missing))}"
    here = {f"{part['name']}-{part.get('version')}" for part in parts}
    sources = re.findall(rb"/registry/src/[^/\0]+/([\w-]+-\d+\.\d+\.\d+[\w.+-]*)/", pathlib.Path(program).read_bytes())
    inside = {name.decode() for name in sources}
    if len(inside) < 100:
        yield f"the program names the sources of {len(inside)} crates only: nothing was compared"
    for name in sorted(inside - here):
        yield f"{name} is in the program, and not in the SBOM"
    print(f"SBOM: {len(parts)} parts of cabrank {version}, {len(inside)} of them seen in the program, valid CycloneDX 1.6")


def complains():
    of = sbom.Part("nobody", "1.0.0", None, None)
    if list(sbom.complaints([of], ["stranger@1.0.0"])) != [
            "nobody@1.0.0 names no licence", "stranger@1.0.0 brings C: say in deploy/sbom.py whose it is"]:
        yield "deploy/sbom.py does not complain of a part without a licence, or of C that nobody knows"


wrong = [*look(*sys.argv[1:3]), *complains()]
for why in wrong:
    print(f"WRONG: {why}", file=sys.stderr)
sys.exit(1 if wrong else 0)
