#!/usr/bin/env bash
# Which alert fires for which fault, and when is all green again? `CABRANK=target/release/cabrank deploy/game_day.sh [flags]`
# breaks a city over a real broker with Prometheus looking on: see deploy/game_day.py and docs/game-day.md.
set -euo pipefail
CABRANK="$(realpath "${CABRANK:?the program}")"
export CABRANK
. "$(dirname "$0")/pods.sh"
command -v prometheus >/dev/null || {
  echo "needs prometheus (Debian: apt-get install prometheus)" >&2
  exit 1
}
exec python3 game_day.py "$@"
