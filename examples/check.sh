#!/usr/bin/env bash
# Do the two example apps work together? A server, a driver, a rider, one ride to its end.
#
#   CABRANK=target/release/cabrank PYTHON=python3 bash examples/check.sh
set -euo pipefail
cabrank="${CABRANK:-target/release/cabrank}"
python="${PYTHON:-python3}"
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
# Ends what was started here, by process id.
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT

"$cabrank" serve --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/serve" 2>&1 &
started+=($!)
address=""
for _ in $(seq 200); do
  address="$(grep -om1 'http://127[0-9.:]*' "$work/serve" || true)"
  [ -n "$address" ] && break
  kill -0 "${started[0]}" || { cat "$work/serve" >&2; exit 1; }
  sleep 0.1
done
"$cabrank" token --role driver --subject d1 |
  SPEED_MPS=40 PING_EVERY_S=0.5 "$python" "$here/driver.py" "${address/http/ws}" 37.7760 -122.4190 >"$work/driver" 2>&1 &
started+=($!)
"$cabrank" token --role rider --subject ann |
  timeout 120 "$python" "$here/rider.py" "$address" 37.7749 -122.4194 37.7770 -122.4170 37.7790 -122.4200 | tee "$work/rider" ||
  { cat "$work/driver" >&2; exit 1; }
grep -q '^[01] cars near: ' "$work/rider"
grep -q '^brought elsewhere: done' "$work/rider"
grep -q '^completed by d1' "$work/rider"
grep -q '^brings the rider to 37.779 -122.42' "$work/driver"
echo "the example apps work"
