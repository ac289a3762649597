#!/usr/bin/env bash
# Does a consumer in another language count the same money? A city over a real Apache Kafka of its own with the services
# beside it; examples/revenue.py reads their topic, is ended in the middle, reads on, and its sum is the audit's.
#
#   CABRANK=target/release/cabrank PYTHON=python3 bash examples/revenue.sh
#
# Needs a JDK 17 and Maven, and Python with examples/requirements-kafka.txt.
set -euo pipefail
cabrank="$(realpath "${CABRANK:-target/release/cabrank}")"
python="${PYTHON:-python3}"
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
# Ends what was started here, by process id.
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT

"$cabrank" own-broker >"$work/broker" &
started+=($!)
broker=""
for _ in $(seq 900); do
  broker="$(grep -om1 '127[0-9.:]*' "$work/broker" || true)"
  [ -n "$broker" ] && break
  kill -0 "${started[0]}" || exit 1
  sleep 0.1
done
"$cabrank" demo --brokers "$broker" --prefix ours. --shards 3 --nodes 1 --gateways 1 --drivers 60 --requests-per-minute 300 \
  --seconds "${SECONDS_OF_CITY:-12}" --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/demo" 2>"$work/said" ||
  { cat "$work/demo" "$work/said" >&2; exit 1; }
revenue() { timeout 60 "$python" "$here/revenue.py" --brokers "$broker" --prefix ours. --database "$work/revenue.db" "$@"; }
revenue --stop-after 17
revenue --once >"$work/revenue"
# Again: nothing is counted twice.
revenue --once | diff "$work/revenue" -
counted="$(sed -n 's/^[0-9]* payments, \([0-9.]*\) .*/\1/p' "$work/revenue")"
audited="$(sed -n 's/^money: \([0-9.]*\) captured.*/\1/p' "$work/demo")"
echo "the audit: $audited, the consumer in Python: $(cat "$work/revenue")"
[ -n "$counted" ] && [ "$counted" = "$audited" ]
