#!/usr/bin/env bash
# Do two releases work side by side? `deploy/upgrade.sh OLD_BINARY NEW_BINARY [flags]` rolls a city from the old release to
# the new one and back under load, over a real broker: see deploy/upgrade.py.
set -euo pipefail
old="$(realpath "${1:?the old program}")" new="$(realpath "${2:?the new program}")"
shift 2
. "$(dirname "$0")/pods.sh"
exec python3 upgrade.py "$old" "$new" "$@"
