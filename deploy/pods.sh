# For scale.sh, upgrade.sh and game_day.sh: what pods.py needs, installed below $CABRANK_TOOLS where it is missing: Python
# with PyYAML, and Kafka's jars (a JDK 17 and Maven, or KAFKA_LIB, a directory with them).
cd "$(dirname "${BASH_SOURCE[0]}")"
for needed in java openssl python3; do
  command -v "$needed" >/dev/null || {
    echo "needs $needed: see README, Prerequisites" >&2
    exit 1
  }
done
tools="${CABRANK_TOOLS:-${TMPDIR:-/tmp}/cabrank-tools}"
export PATH="$tools/venv/bin:$PATH"
if ! python3 -c 'import yaml' 2>/dev/null; then
  python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install -q -r check/requirements.txt
  hash -r
fi
KAFKA_LIB="${KAFKA_LIB:-$tools/kafka-lib}"
if [ ! -d "$KAFKA_LIB" ]; then
  command -v mvn >/dev/null || {
    echo "needs mvn (Maven), or KAFKA_LIB: a directory with Kafka's jars" >&2
    exit 1
  }
  mvn -q -B dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$KAFKA_LIB" -f ../tests/kafka/pom.xml
fi
export KAFKA_LIB
