"""Are rendered objects what Kubernetes takes? Standard kinds by its own schemas, strictly; custom ones are counted and
named, because their schemas are not here: golden files are all that looks at them. Also what no schema says: grace
periods cover hooks and drains, selectors find pods, nobody runs as root, no Secret is rendered."""

import re
import sys

import kubernetes_validate
import yaml

CUSTOM = ("monitoring.coreos.com/", "keda.sh/")
VERSIONS = ("1.30", "1.33", "1.37")


def pod_of(obj):
    return obj["spec"]["template"] if obj["kind"] in ("Deployment", "StatefulSet", "Job") else None


def wrong(objects):
    pods = [(o, pod_of(o)) for o in objects if pod_of(o)]
    for obj, pod in pods:
        name, spec = f'{obj["kind"]} {obj["metadata"]["name"]}', pod["spec"]
        if not spec["securityContext"]["runAsNonRoot"] or spec["automountServiceAccountToken"]:
            yield f"{name}: runs as root or with a token"
        for box in spec["containers"]:
            secure = box["securityContext"]
            if not secure["readOnlyRootFilesystem"] or secure["allowPrivilegeEscalation"]:
                yield f"{name}: its root can be written"
            if "requests" not in box["resources"] or "memory" not in box["resources"]["limits"]:
                yield f"{name}: no requests, or no bound for memory"
            if obj["kind"] != "Job" and not all(f"{p}Probe" in box for p in ("startup", "readiness", "liveness")):
                yield f"{name}: a probe is missing"
            stop = box.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            grace = spec.get("terminationGracePeriodSeconds", 30)
            config = next((o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"].endswith("-config")))
            drains = {"gateway": "drain_ms", "matcher": "transaction_timeout_ms"}
            asked = re.search(rf'^{drains.get(box["name"], "-")} = (\d+)', config["data"]["cabrank.toml"], re.M)
            drain = int(asked[1]) / 1000 if asked else 0
            if grace < stop + drain + 5:
                yield f"{name}: {grace} s are less than the hook's {stop}, the drain's {drain} and 5"
    labels = [pod["metadata"]["labels"] for _, pod in pods]
    for obj in objects:
        name = f'{obj["kind"]} {obj["metadata"]["name"]}'
        if obj["kind"] == "Secret":
            yield f"{name}: secrets are referred to, never rendered"
        spec, wanted = obj.get("spec") or {}, None
        if obj["kind"] == "Service":
            wanted = spec["selector"]
        elif obj["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            wanted = spec["selector"]["matchLabels"]
        elif obj["kind"] == "NetworkPolicy":
            wanted = spec["podSelector"]["matchLabels"]
        if wanted and not any(wanted.items() <= have.items() for have in labels):
            yield f"{name}: selects no pod: {wanted}"


def main(paths):
    bad, custom = [], set()
    for path in paths:
        with open(path, encoding="utf-8") as text:
            objects = [o for o in yaml.safe_load_all(text) if o]
        for obj in objects:
            if obj["apiVersion"].startswith(CUSTOM):
                custom.add(obj["kind"])
                continue
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(obj, version, strict=True)
                except Exception as why:
                    bad.append(f'{path}: {obj["kind"]} {obj["metadata"]["name"]} in {version}: {getattr(why, "message", why)}')
        bad.extend(f"{path}: {why}" for why in wrong(objects))
    print("\n".join(bad) if bad else f"objects: valid in Kubernetes {', '.join(VERSIONS)}")
    if custom:
        print(f"by golden files only, no schemas here: {', '.join(sorted(custom))}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
