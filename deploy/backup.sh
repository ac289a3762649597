#!/usr/bin/env bash
# Is the backup of docs/operations.md one? `CABRANK=target/release/cabrank deploy/backup.sh` copies the store of a server
# under load as described there, ends the server with kill -9, restores the copy, and audits both.
set -euo pipefail
cabrank="$(realpath "${CABRANK:?the program}")"
work="$(mktemp -d)"
started=()
cleanup() { for pid in "${started[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; rm -rf "$work"; }
trap cleanup EXIT
mkdir "$work/backup"

serve() { # DIR LOG -> pid in $server, address in $url
  "$cabrank" serve --listen 127.0.0.1:0 --data-dir "$1" >"$2" &
  server=$!
  started+=("$server")
  for _ in $(seq 300); do
    url="$(grep -m1 '^http' "$2" || true)"
    [ -z "$url" ] || return 0
    sleep 0.1
  done
  echo "the server does not start" >&2
  exit 1
}

serve "$work/data" "$work/serve.log"
# The load loses its server in the middle: that is the point.
"$cabrank" load --url "$url" --rides-per-second 50 --pings-per-second 500 --drivers 200 --seconds 60 >"$work/load.log" 2>&1 &
started+=($!)
sleep 10

from="$(date +%s%N)"
kill -STOP "$server"; cp "$work/data/cabrank.redb" "$work/backup/"; kill -CONT "$server"
took=$((($(date +%s%N) - from) / 1000000))
sleep 5
kill -9 "$server"; wait "$server" 2>/dev/null || true

events() { "$cabrank" audit --data-dir "$1" | tee "$work/audit.log" >&2; sed -n 's/^\([0-9]*\) events.*/\1/p' "$work/audit.log"; }
copied="$(events "$work/backup")"
rest="$(events "$work/data")"
[ "$copied" -gt 0 ] && [ "$copied" -lt "$rest" ] || { echo "the copy has $copied events, the store $rest" >&2; exit 1; }

# Restored: it serves, goes on, drains and is still whole.
cp -r "$work/backup" "$work/restored"
serve "$work/restored" "$work/restored.log"
"$cabrank" load --url "$url" --rides-per-second 20 --drivers 100 --seconds 5 >"$work/load2.log" 2>&1 ||
  # On a busy machine the generator may be late: that is about latencies.
  grep -q '^0 violations' "$work/load2.log" || { tail -5 "$work/load2.log"; exit 1; }
kill -TERM "$server"
wait "$server"
again="$(events "$work/restored")"
[ "$again" -gt "$copied" ] || { echo "nothing happened after the restore" >&2; exit 1; }
echo "backup: the server stood still for $took ms; $copied events came back of the $rest there were 5 s later; $again after the restored city went on"
