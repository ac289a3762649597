#!/usr/bin/env bash
# Does each call answer as /openapi.json says, whatever is sent to it? A server, and schemathesis with an operator's, a rider's
# and a driver's token.
#
#   CABRANK=target/release/cabrank SCHEMATHESIS=schemathesis bash fuzz/schemathesis.sh [EXAMPLES]
set -euo pipefail
cabrank="$(realpath "${CABRANK:-target/release/cabrank}")"
schemathesis="${SCHEMATHESIS:-schemathesis}"
examples="${1:-40}"
work="$(mktemp -d)"
started=""
# Ends what was started here, by process id.
trap 'kill $started 2>/dev/null || true; wait; rm -rf "$work"' EXIT
# Without the limits of a rider's calls every call gets to what is behind them.
export CABRANK_GATEWAY__LIMITS__REQUESTS_PER_MINUTE=0
"$cabrank" serve --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/serve" 2>&1 &
started=$!
address=""
for _ in $(seq 200); do
  address="$(grep -om1 'http://127[0-9.:]*' "$work/serve" || true)"
  [ -n "$address" ] && break
  kill -0 "$started" || { cat "$work/serve" >&2; exit 1; }
  sleep 0.1
done
cd "$work"
for role in ops rider driver; do
  token="$("$cabrank" token --role "$role" --subject schemathesis)"
  echo "== as $role"
  # The stream of events has no end, and positive examples of data say nothing about ids that exist.
  "$schemathesis" run "$address/openapi.json" --header "Authorization: Bearer $token" --seed 1 \
    --max-examples "$examples" --request-timeout 5 --exclude-path /v1/events --generation-database none --suppress-health-check all \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method,ignored_auth \
    --no-color
done
# The server has lived through it.
kill -0 "$started"
