"""Plays the chart's pods with processes over a real broker: the arguments, environment, configuration, probes, hooks,
signals and grace periods are read from the rendered chart (deploy/check/golden/scale.yaml), nothing is written here
twice. What a cluster gives is played: each pod has an address of its own (of 127.0.0.0/8, put where the chart says
0.0.0.0), probes are asked as often as it says, a pod that goes hears its hook and SIGTERM and, after its grace, SIGKILL.

Under load the number of nodes goes 1, 3, 2. Fails if a shard gives no committed answer for longer than the bound, if a
probe that must not fails, if a pod needs its SIGKILL, if the load is not well, or if the audit finds anything.
With Prometheus: it scrapes the pods as deploy/prometheus.yaml does, and every panel and every figure must have data; with
--alerts all nodes are killed and the broker is frozen, and the alerts of docs/runbook.md must fire and end."""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

HERE = pathlib.Path(__file__).parent
CABRANK = os.environ["CABRANK"]
SECRET = "a secret of this run, thrown away after it"
RENDERED = HERE / "check/golden/scale.yaml"
PROBERS = 16


def say(*words):
    print(f"[{time.monotonic() - BEGAN:6.1f} s]", *words, flush=True)


BEGAN = time.monotonic()
WRONG = []


def wrong(why):
    say("WRONG:", why)
    WRONG.append(why)


def wait_for(what, found, patience=60.0, every=0.1):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        got = found()
        if got:
            return got
        time.sleep(every)
    raise SystemExit(f"not within {patience:.0f} s: {what}")


def get(url, timeout=5.0, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
        return answer.read()


def listens(address):
    with socket.socket() as tried:
        tried.settimeout(0.5)
        return tried.connect_ex(address) == 0


class Broker:
    """One Apache Kafka."""

    def __init__(self, work):
        self.dir = work / "kafka"
        self.dir.mkdir()
        with socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
            self.port, control = a.getsockname()[1], b.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        settings = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@127.0.0.1:{control}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{control}",
            "advertised.listeners": f"PLAINTEXT://{self.address}", "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "log.dirs": self.dir / "data",
            "auto.create.topics.enable": "false", "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.replication.factor": 1, "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1, "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4, "log.cleaner.dedupe.buffer.size": 33554432,
        }
        (self.dir / "server.properties").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        (self.dir / "log4j2.properties").write_text(
            "rootLogger.level = WARN\nrootLogger.appenderRef.out.ref = OUT\nappender.out.type = Console\nappender.out.name = OUT\n"
            "appender.out.layout.type = PatternLayout\nappender.out.layout.pattern = %d %p %c{1} %m%n\n")
        self.java("kafka.tools.StorageTool", "format", "-t", "Y2FicmFuay10ZXN0czAwMA", "-c", self.dir / "server.properties").wait()
        self.process = self.java("kafka.Kafka", self.dir / "server.properties")
        wait_for("the broker", lambda: listens(("127.0.0.1", self.port)), 90)

    def java(self, *arguments):
        log = (self.dir / "server.log").open("ab")
        heap = ["-Xms512m", "-Xmx512m", "-Xmn256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command = ["java", *heap, f"-Dlog4j2.configurationFile={self.dir}/log4j2.properties", "-cp", f"{os.environ['KAFKA_LIB']}/*"]
        return subprocess.Popen([*command, *map(str, arguments)], stdout=log, stderr=log)


def papers(work):
    """What the chart's Secret for `clusterTls` holds: an authority that is thrown away, and a certificate for everybody."""
    into = work / "cluster"
    into.mkdir()

    def openssl(*words):
        done = subprocess.run(["openssl", *words], cwd=into, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"openssl {words[0]}: {done.stderr.strip()}")

    (into / "openssl.cnf").write_text(
        "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:true\n"
        "[pod]\nbasicConstraints=critical,CA:false\nsubjectAltName=DNS:cabrank.internal\n")
    make = ("req", "-x509", "-config", "openssl.cnf", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
    openssl(*make, "-subj", "/CN=scale", "-extensions", "ca", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(*make, "-subj", "/CN=pod", "-extensions", "pod", "-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "tls.key", "-out", "tls.crt")
    return into


class Cluster:
    """What Kubernetes has been told."""

    def __init__(self, work, broker):
        self.work, self.broker = work, broker
        objects = [o for o in yaml.safe_load_all(RENDERED.read_text()) if o]
        self.objects = {(o["kind"], o["metadata"]["name"]): o for o in objects}
        self.toml = work / "cabrank.toml"
        config = self.objects["ConfigMap", "scale-config"]["data"]["cabrank.toml"]
        self.toml.write_text(config.replace("/etc/cabrank/cluster", str(papers(work))))

    def start(self, kind, owner, name, ip):
        return Pod(self, self.objects[kind, owner]["spec"]["template"]["spec"], name, ip)


class Pod:
    """A pod of one container, and the kubelet that looks after it."""

    def __init__(self, cluster, spec, name, ip):
        self.name, self.ip, self.spec = name, ip, spec
        self.box = spec["containers"][0]
        self.ports = {port["name"]: port["containerPort"] for port in self.box.get("ports", [])}
        fields = {"metadata.name": name, "status.podIP": ip}
        env = {}
        for entry in self.box["env"]:
            source = entry.get("valueFrom", {})
            if "fieldRef" in source:
                env[entry["name"]] = fields[source["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in source:
                env[entry["name"]] = SECRET
            else:
                env[entry["name"]] = entry["value"]
        arguments = []
        for argument in self.box["args"]:
            argument = re.sub(r"\$\((\w+)\)", lambda m: env[m[1]], argument)
            arguments.append(argument.replace("0.0.0.0", ip))
        # Where things are instead of where the chart mounts them: the configuration, the broker and the secret.
        env |= {"CABRANK_CONFIG": str(cluster.toml), "CABRANK_KAFKA__BROKERS": cluster.broker.address, "PATH": os.environ["PATH"]}
        self.log = cluster.work / f"{name}.log"
        self.process = subprocess.Popen([CABRANK, *arguments], env=env, stdout=self.log.open("ab"), stderr=subprocess.STDOUT)
        self.ready, self.going, self.began = False, False, time.monotonic()
        if "startupProbe" in self.box:
            threading.Thread(target=self.look_after, daemon=True).start()

    def url(self, probe):
        asked = self.box[probe]["httpGet"]
        return f"http://{self.ip}:{self.ports[asked['port']]}{asked['path']}"

    def passes(self, probe):
        try:
            get(self.url(probe), timeout=self.box[probe].get("timeoutSeconds", 1))
            return True
        except (OSError, urllib.error.URLError):
            return False

    def look_after(self):
        start = self.box["startupProbe"]
        for _ in range(start["failureThreshold"]):
            if self.going or self.passes("startupProbe"):
                break
            time.sleep(start["periodSeconds"])
        else:
            wrong(f"{self.name}: its startup probe never passed")
        failed = {"readinessProbe": 0, "livenessProbe": 0}
        due = dict.fromkeys(failed, time.monotonic())
        while not self.going:
            for probe, at in due.items():
                if time.monotonic() < at:
                    continue
                due[probe] = time.monotonic() + self.box[probe].get("periodSeconds", 10)
                failed[probe] = 0 if self.passes(probe) else failed[probe] + 1
                if self.going:
                    return
                beyond = failed[probe] >= self.box[probe]["failureThreshold"]
                if probe == "readinessProbe":
                    self.ready = (self.ready or failed[probe] == 0) and not beyond
                elif beyond:
                    wrong(f"{self.name}: a kubelet would restart it: {self.url(probe)} fails")
                    return
            time.sleep(0.1)

    def wait_ready(self):
        wait_for(f"{self.name} is ready: {self.log.read_text()[-500:]}", lambda: self.ready, 180)
        say(f"{self.name} is ready after {time.monotonic() - self.began:.1f} s")

    def stop(self):
        """The hook, SIGTERM, the grace period, SIGKILL."""
        self.going, self.ready = True, False
        began = time.monotonic()
        time.sleep(self.box.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
        self.process.send_signal(signal.SIGTERM)
        grace = self.spec.get("terminationGracePeriodSeconds", 30)
        try:
            code = self.process.wait(timeout=grace - (time.monotonic() - began))
            say(f"{self.name} left within {time.monotonic() - began:.1f} of {grace} s, exit code {code}")
            if code != 0:
                wrong(f"{self.name}: exit code {code}: {self.log.read_text()[-500:]}")
        except subprocess.TimeoutExpired:
            self.process.kill()
            wrong(f"{self.name}: had to be killed after {grace} s")

    def kill(self):
        self.going = True
        self.process.kill()
        self.process.wait()


class StatefulSet:
    """Nodes, made side by side and taken away from the last (podManagementPolicy: Parallel)."""

    def __init__(self, cluster, owner, first_ip):
        self.cluster, self.owner, self.first_ip = cluster, owner, first_ip
        self.pods = []

    def scale(self, count):
        while len(self.pods) > count:
            self.pods.pop().stop()
        new = range(len(self.pods), count)
        made = [self.cluster.start("StatefulSet", self.owner, f"{self.owner}-{n}", f"127.0.2.{self.first_ip + n}") for n in new]
        self.pods += made
        for pod in made:
            pod.wait_ready()


class Probers:
    """Ask all shards for committed answers, ten times a second each, and remember the longest silence of each prober.
    Reinstating a driver nobody has suspended changes nothing, but it is a command like any other."""

    def __init__(self, doors, token):
        self.doors, self.token = doors, token
        self.lock, self.longest, self.failed, self.answered, self.going = threading.Lock(), {}, 0, 0, True
        self.threads = [threading.Thread(target=self.ask, args=(n,), daemon=True) for n in range(PROBERS)]
        for thread in self.threads:
            thread.start()

    def ask(self, number):
        last = None
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        while self.going:
            door = self.doors()[number % 2]
            path = f"{door}/v1/drivers/scale-probe-{number}/reinstate"
            request = urllib.request.Request(path, data=b"{}", headers=headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    answer.read()
                with self.lock:
                    now = time.monotonic()
                    self.answered += 1
                    if last is not None:
                        self.longest[number] = max(self.longest.get(number, 0.0), now - last)
                    last = now
            except urllib.error.HTTPError as refused:
                with self.lock:
                    self.failed += 1
                    self.last_refusal = f"{refused.code} {refused.read(200)!r}"
            except OSError as why:
                with self.lock:
                    self.failed += 1
                    self.last_refusal = str(why)
            time.sleep(0.1)

    def take(self):
        """The longest silence since the last look."""
        with self.lock:
            worst = max(self.longest.values(), default=0.0)
            self.longest.clear()
            return worst


class Prometheus:
    """Scrapes the pods under the jobs of deploy/prometheus.yaml."""

    def __init__(self, work, gateways, node_addresses):
        data = work / "prometheus"
        data.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        config = yaml.safe_load((HERE / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "2s"}
        config["rule_files"] = [str((HERE / "helm/cabrank/files/alerts.yaml").resolve())]
        targets = {"gateway": gateways, "matcher": node_addresses}
        config["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
            for job in config["scrape_configs"] if job["job_name"] in targets]
        (data / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={data}/prometheus.yaml", f"--storage.tsdb.path={data}/tsdb", f"--web.listen-address={self.url[7:]}"],
            stdout=(work / "prometheus.log").open("ab"), stderr=subprocess.STDOUT)

    def ask(self, expr):
        query = urllib.parse.urlencode({"query": expr})
        return json.loads(get(f"{self.url}/api/v1/query?{query}", timeout=20))["data"]["result"]

    def firing(self, alert):
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))


def queries():
    """Every query of every panel, every figure, and what each alert compares."""
    for path in sorted((HERE / "helm/cabrank/files/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "1m")
    for group in yaml.safe_load((HERE / "helm/cabrank/files/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            name = rule.get("record") or rule["alert"]
            # An alert that does not fire has no result: what stands before its comparison must have one.
            yield name, rule["expr"] if "record" in rule else re.split(r" (?:[<>]=?|==) [\d.]+$", rule["expr"])[0]


def ask_everything(prometheus):
    asked = list(queries())
    silent = [(name, expr) for name, expr in asked if not prometheus.ask(expr)]
    for name, expr in silent:
        wrong(f"no data for {name}: {expr}")
    say(f"prometheus: {len(asked) - len(silent)} of {len(asked)} queries of panels and rules have data")


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--rides-per-second", type=float, default=10)
    flags.add_argument("--pings-per-second", type=float, default=300)
    flags.add_argument("--drivers", type=int, default=300)
    flags.add_argument("--phase", type=float, default=20, help="seconds of load at each number of nodes")
    flags.add_argument("--pause", type=float, default=1.0, help="longest silence of a shard, seconds")
    flags.add_argument("--alerts", action="store_true")
    args = flags.parse_args()
    started = []
    work = pathlib.Path(tempfile.mkdtemp(prefix="cabrank-scale-"))
    try:
        run(args, work, started)
    finally:
        for process in started:
            process = getattr(process, "process", process)
            if process.poll() is None:
                process.kill()
                process.wait()
        if WRONG:
            print(f"what the processes said is in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    print("scale: in order" if not WRONG else f"scale: {len(WRONG)} things are wrong")
    return 1 if WRONG else 0


def run(args, work, started):
    broker = Broker(work)
    started.append(broker)
    say("a broker at", broker.address)
    cluster = Cluster(work, broker)
    job = cluster.start("Job", "scale-topics", "scale-topics", "127.0.0.1")
    if job.process.wait(timeout=120) != 0:
        raise SystemExit(f"the topics job failed: {job.log.read_text()}")
    say("the topics are made")

    nodes = StatefulSet(cluster, "scale-matcher", 1)
    nodes.scale(1)
    started.extend(nodes.pods)
    gateways = [cluster.start("Deployment", "scale-gateway", f"scale-gateway-{n}", f"127.0.1.{n}") for n in (1, 2)]
    started.extend(gateways)
    for gateway in gateways:
        gateway.wait_ready()
    doors = [f"http://{gateway.ip}:{gateway.ports['http']}" for gateway in gateways]
    prometheus = None
    if shutil.which("prometheus"):
        prometheus = Prometheus(work, [door[7:] for door in doors], [f"127.0.2.{n}:7001" for n in (1, 2, 3)])
        started.append(prometheus)
    else:
        say("no Prometheus here: no query is asked")

    env = os.environ | {"CABRANK_GATEWAY__KEYS__SECRET": SECRET}
    token = subprocess.run([CABRANK, "token", "--role", "ops"], env=env, check=True, capture_output=True, text=True).stdout.strip()
    seconds = 3 * args.phase + 25
    urls = [word for door in doors for word in ("--url", door)]
    load = subprocess.Popen(
        [CABRANK, "load", *urls, "--secret", SECRET, "--no-probe", "--seconds", str(int(seconds)), "--drivers", str(args.drivers),
         "--rides-per-second", str(args.rides_per_second), "--pings-per-second", str(args.pings_per_second),
         "--nearby-per-second", "10", "--decline", "0.05"],
        env=env, stdout=(work / "load.log").open("wb"), stderr=subprocess.STDOUT)
    started.append(load)
    time.sleep(5)
    probers = Probers(lambda: doors, token)
    time.sleep(args.phase)
    if probers.answered < PROBERS:
        wrong(f"the probers get no answers: {probers.last_refusal}")
    say(f"one node: longest silence of a shard {probers.take():.2f} s")
    for count in (3, 2):
        nodes.scale(count)
        started.extend(pod for pod in nodes.pods if pod not in started)
        time.sleep(args.phase)
        pause = probers.take()
        say(f"{count} nodes: longest silence of a shard {pause:.2f} s, {probers.failed} of {probers.answered + probers.failed} commands failed so far")
        if pause > args.pause:
            wrong(f"a shard was silent for {pause:.2f} s when the nodes became {count}; at most {args.pause}")
    probers.going = False
    code = load.wait(timeout=seconds + 60)
    said = (work / "load.log").read_text()
    print("\n".join(f"    {line}" for line in said.splitlines() if not line.startswith(("measuring:", "warming", "ending:"))))
    # On a busy machine the generator may be late, which spoils its latencies, but neither its rides nor its audit.
    is_late = "NOT VALID: the generator itself was late" in said and re.search("^0 violations", said, re.MULTILINE)
    if code != 0 and not is_late:
        wrong(f"the load ended with {code}")
    if prometheus:
        ask_everything(prometheus)
        most = prometheus.ask('max by (job) (max_over_time(process_resident_memory_bytes{job=~"gateway|matcher"}[5m]))')
        say("memory at most:", ", ".join(f"{of['metric']['job']} {float(of['value'][1]) / 2**20:.0f} MiB" for of in most))
        if args.alerts:
            break_it(nodes, broker, prometheus, started)
    for gateway in gateways:
        gateway.stop()
    nodes.scale(0)
    environment = os.environ | {"CABRANK_KAFKA__PREFIX": "scale.", "CABRANK_KAFKA__SHARDS": "4", "CABRANK_KAFKA__REPLICATION": "1"}
    audit = subprocess.run([CABRANK, "audit", "--brokers", broker.address], env=environment, capture_output=True, text=True)
    print(audit.stdout.strip())
    if audit.returncode != 0:
        wrong(f"the audit: {audit.stderr.strip()}")


def break_it(nodes, broker, prometheus, started):
    """A game day: all nodes are killed, then the broker stands still. The alerts of docs/runbook.md fire, and end."""

    def fires(*alerts):
        since = time.monotonic()
        for alert in alerts:
            wait_for(f"{alert} fires", lambda: prometheus.firing(alert), 180, 0.5)
            say(f"    {alert} fires after {time.monotonic() - since:.0f} s")

    def ends(*alerts):
        since = time.monotonic()
        for alert in alerts:
            wait_for(f"{alert} ends", lambda: not prometheus.firing(alert), 180, 0.5)
            say(f"    {alert} is over {time.monotonic() - since:.0f} s later")

    count = len(nodes.pods)
    say("all nodes are killed")
    for pod in nodes.pods:
        pod.kill()
    nodes.pods.clear()
    fires("CabrankShardNotServed")
    nodes.scale(count)
    started.extend(nodes.pods)
    ends("CabrankShardNotServed")
    say("the broker stands still")
    broker.process.send_signal(signal.SIGSTOP)
    fires("CabrankNoLease", "CabrankShardNotServed")
    say("it goes on")
    broker.process.send_signal(signal.SIGCONT)
    ends("CabrankNoLease", "CabrankShardNotServed")


if __name__ == "__main__":
    sys.exit(main())
