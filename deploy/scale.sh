#!/usr/bin/env bash
# Do nodes, and with --reshard shards, change their number under load without loss? `CABRANK=target/release/cabrank deploy/scale.sh [flags]` plays what
# the chart deploys with processes over a real broker: see deploy/scale.py. With Prometheus also every panel and rule is
# asked.
set -euo pipefail
CABRANK="$(realpath "${CABRANK:?the program}")"
export CABRANK
. "$(dirname "$0")/pods.sh"
exec python3 scale.py "$@"
