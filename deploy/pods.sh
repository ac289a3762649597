# For scale.sh, upgrade.sh and game_day.sh: what pods.py needs, installed below $CABRANK_TOOLS where it is missing: Python
# with PyYAML, and Kafka's jars (a JDK 17 and Maven, or KAFKA_LIB, a directory with them).
cd "$(dirname "${BASH_SOURCE[0]}")"
tools="${CABRANK_TOOLS:-${TMPDIR:-/tmp}/cabrank-tools}"
export PATH="$tools/venv/bin:$PATH"
if ! python3 -c 'import yaml' 2>/dev/null; then
  python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install -q -r check/requirements.txt
  hash -r
fi
KAFKA_LIB="${KAFKA_LIB:-$tools/kafka-lib}"
if [ ! -d "$KAFKA_LIB" ]; then
  mvn -q -B dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$KAFKA_LIB" -f ../tests/kafka/pom.xml
fi
export KAFKA_LIB
