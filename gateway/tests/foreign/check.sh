#!/usr/bin/env bash
# Do WebSocket libraries of other languages find that the server keeps to RFC 6455? A server, and Python's wsproto and
# Node's ws as drivers.
#
#   CABRANK=target/release/cabrank PYTHON=python3 bash gateway/tests/foreign/check.sh
set -euo pipefail
cabrank="${CABRANK:-target/release/cabrank}"
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
started=""
# Ends what was started here, by process id.
trap 'kill $started 2>/dev/null || true; wait; rm -rf "$work"' EXIT
# Each case opens a socket of the same person.
export CABRANK_GATEWAY__LIMITS__SOCKETS_PER_MINUTE=0
"$cabrank" serve --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/serve" 2>&1 &
started=$!
address=""
for _ in $(seq 200); do
  address="$(grep -om1 'http://127[0-9.:]*' "$work/serve" || true)"
  [ -n "$address" ] && break
  kill -0 "$started" || { cat "$work/serve" >&2; exit 1; }
  sleep 0.1
done
"$cabrank" token --role driver --subject python | "${PYTHON:-python3}" "$here/client.py" "${address/http/ws}"
"$cabrank" token --role driver --subject node | node "$here/../../../web/test/websocket.mjs" "${address/http/ws}"
# The server has lived through it.
kill -0 "$started"
