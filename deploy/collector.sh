#!/usr/bin/env bash
# Does a real OpenTelemetry Collector take compose.yaml's configuration, and a ride's whole trace? `deploy/collector.sh` builds
# the release of it that compose.yaml runs, with the parts that otel.yaml names (deploy/check/collector; one to three minutes,
# once, below $CABRANK_TOOLS), has it look at otel.yaml, and runs tests/one_trace.rs through it: gateway, node, services and a
# phone over a real broker. Needs Go, Cargo, a JDK 17 and Maven.
set -euo pipefail
cd "$(dirname "$0")/.."
tools="${CABRANK_TOOLS:-${TMPDIR:-/tmp}/cabrank-tools}"
version="$(sed -n 's/^ *image: otel\/opentelemetry-collector://p' deploy/compose.yaml)"
otelcol="$tools/bin/otelcol-$version"
if [ ! -x "$otelcol" ]; then
  mkdir -p "$tools/bin"
  (cd deploy/check/collector && go build -o "$otelcol" .)
fi
if [ "$("$otelcol" --version)" != "otelcol version $version" ] || ! grep -q "collector/otelcol v$version\$" deploy/check/collector/go.mod; then
  echo "deploy/check/collector is another release than compose.yaml's, $version" >&2
  exit 1
fi
"$otelcol" validate --config=deploy/otel.yaml
CABRANK_OTELCOL="$otelcol" cargo test --workspace --test one_trace -- --nocapture
