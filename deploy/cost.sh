#!/usr/bin/env bash
# What does a city cost at rising rates? `CABRANK=target/release/cabrank deploy/cost.sh` measures processor time, memory and
# log by processes over a real broker: see deploy/cost.py; the table is in docs/operations.md.
set -euo pipefail
CABRANK="$(realpath "${CABRANK:?the program}")"
export CABRANK
. "$(dirname "$0")/pods.sh"
exec python3 cost.py "$@"
