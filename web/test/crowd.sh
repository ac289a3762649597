#!/usr/bin/env bash
# Does the live map bear a city of 5,000 drivers? Fifty open maps cost the server less than 0.2 of a core, and a browser draws at
# least 30 frames a second.
#
#   CABRANK=target/release/cabrank bash web/test/crowd.sh
set -euo pipefail
cabrank="$(realpath "${CABRANK:-target/release/cabrank}")"
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
started=""
# Ends what was started here, by process id.
trap 'kill $started 2>/dev/null || true; wait; rm -rf "$work"' EXIT
"$cabrank" demo --drivers 5000 --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/demo" 2>&1 &
started=$!
address=""
for _ in $(seq 600); do
  address="$(sed -n 's/^the city, live: //p' "$work/demo")"
  [ -n "$address" ] && break
  kill -0 "$started" || { cat "$work/demo" >&2; exit 1; }
  sleep 0.1
done
# All of them at work, so that what is measured stands still.
node --input-type=module -e '
  const end = Date.now() + 60_000;
  const open = async () => {
    const told = await (await fetch(process.argv[1])).text();
    return Number(told.match(/^cabrank_sockets_open\{role="driver"\} (\d+)/m)?.[1] ?? 0);
  };
  while ((await open()) < 4_800) {
    if (Date.now() > end) throw new Error("the drivers do not come");
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
' "${address%%/#*}/metrics"
node "$here/maps.mjs" "$address" "$started" 50 15 0.2
chromium="${CHROMIUM:-$(command -v chromium || command -v chromium-browser || true)}"
if [ -n "$chromium" ]; then
  CHROMIUM="$chromium" node "$here/frames.mjs" "$address" 10 30
elif [ "${CI:-}" = true ]; then
  echo "CI=true, and chromium is missing" >&2
  exit 1
else
  echo "frames: not run, it needs chromium"
fi
