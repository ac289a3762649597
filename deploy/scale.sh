#!/usr/bin/env bash
# Does the number of nodes change under load without loss? `CABRANK=target/release/cabrank deploy/scale.sh [--alerts]`
# plays what the chart deploys with processes over a real broker: see deploy/scale.py. Needs Python with PyYAML, a JDK 17
# and Maven (or KAFKA_LIB, a directory with Kafka's jars); with Prometheus also every panel and rule is asked.
set -euo pipefail
CABRANK="$(realpath "${CABRANK:?the program}")"
export CABRANK
cd "$(dirname "$0")"
tools="${CABRANK_TOOLS:-${TMPDIR:-/tmp}/cabrank-tools}"
export PATH="$tools/venv/bin:$PATH"
if ! python3 -c 'import yaml' 2>/dev/null; then
  python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install -q -r check/requirements.txt
fi
lib="${KAFKA_LIB:-$tools/kafka-lib}"
if [ ! -d "$lib" ]; then
  mvn -q -B dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$lib" -f ../tests/kafka/pom.xml
fi
export KAFKA_LIB="$lib"
exec python3 scale.py "$@"
