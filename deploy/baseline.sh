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
# A target directory of its own: Cargo takes crates of one name in two checkouts for the same ones. What is compiled of the
# registry's crates is linked into it.
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
own="$target/baseline-${commit:0:12}"
mkdir -p "$out" "$own/src" "$own/debug"
# Always in the same place: to Cargo a crate is another one elsewhere. What is there is not written anew, so that it is not
# built anew either.
[ -f "$own/src/Cargo.toml" ] || git archive "$commit" | tar -x -C "$own/src"
for part in deps build .fingerprint; do
  if [ -d "$target/debug/$part" ] && [ ! -d "$own/debug/$part" ]; then
    cp -al "$target/debug/$part" "$own/debug/$part"
    find "$own/debug/$part" -mindepth 1 -maxdepth 1 -name '*cabrank*' -exec rm -rf {} +
    # Programs are linked anew, and not into a file that is another's, too.
    [ "$part" != deps ] || find "$own/debug/deps" -type f ! -name '*.rlib' ! -name '*.rmeta' ! -name '*.so' ! -name '*.d' -delete
  fi
done
(cd "$own/src" && CARGO_TARGET_DIR="$own" cargo test --quiet --workspace --no-run --test probe)
cp "$own/debug/cabrank" "$out/cabrank"
cp "$own/src/deploy/check/golden/scale.yaml" "$out/scale.yaml"
echo "the release before: $commit, $("$out/cabrank" --version)"
