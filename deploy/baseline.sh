#!/usr/bin/env bash
# Builds the release before this one, for deploy/upgrade.sh: the last tag's program or, before there is a tag, that of the
# commit named in deploy/baseline. `deploy/baseline.sh DIR` puts the program and its chart's scale.yaml into DIR; exit code 3
# when this clone does not have the commit. Built as the tests are, so that after `cargo test --workspace` only what differs
# is built; CARGO_TARGET_DIR is respected.
set -euo pipefail
out="$(realpath -m "${1:?where to}")"
cd "$(dirname "$0")/.."
commit="$(git describe --tags --abbrev=0 --match 'v*' HEAD^ 2>/dev/null || cat deploy/baseline)"
if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
  echo "this clone has no $commit, the release before: fetch it (git fetch --unshallow)" >&2
  exit 3
fi
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
mkdir -p "$out/src"
# Files carry the commit's time, so that what was built of them before is still good.
git archive "$commit" | tar -x -C "$out/src"
(cd "$out/src" && CARGO_TARGET_DIR="$target" cargo test --quiet --workspace --no-run --test probe)
cp "$target/debug/cabrank" "$out/cabrank"
cp "$out/src/deploy/check/golden/scale.yaml" "$out/scale.yaml"
echo "the release before: $commit, $("$out/cabrank" --version)"
