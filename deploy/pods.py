"""Plays the chart's pods with processes over a real broker: the arguments, environment, configuration, probes, hooks,
signals and grace periods are read from the rendered chart (deploy/check/golden/scale.yaml), nothing is written here
twice. What a cluster gives is played: each pod has an address of its own (of 127.0.0.0/8, put where the chart says
0.0.0.0), probes are asked as often as it says, a pod that goes hears its hook and SIGTERM and, after its grace, SIGKILL,
and the city's address leads to the gateways that are ready.

Used by scale.py (more and fewer nodes), upgrade.py (two releases side by side), game_day.py (faults and alerts) and cost.py (what rides and positions cost)."""

import asyncio
import http.client
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
import tomllib
import urllib.error
import urllib.parse
import urllib.request

import yaml

HERE = pathlib.Path(__file__).parent
SECRET = "a secret of this run, thrown away after it"
RENDERED = HERE / "check/golden/scale.yaml"
ALERTS = HERE / "helm/cabrank/files/alerts.yaml"
PROBERS = 16


def say(*words):
    print(f"[{time.monotonic() - BEGAN:6.1f} s]", *words, flush=True)


BEGAN = time.monotonic()
WRONG = []
STARTED = []


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
    raise SystemExit(f"not within {patience:.0f} s: {what() if callable(what) else what}")


def spawn(command, log, env=None):
    """A process whose words go to a file; it is gone when we are."""
    with open(log, "ab") as said:
        process = subprocess.Popen([str(word) for word in command], env=env, stdout=said, stderr=said)
    STARTED.append(process)
    return process


def get(url, timeout=5.0, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
        return answer.read()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def listens(address):
    with socket.socket() as tried:
        tried.settimeout(0.5)
        return tried.connect_ex(address) == 0


def answer(take):
    """Connections to the port this gives are handed to `take`."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(take, "127.0.0.1", 0, backlog=1024), loop).result()
    return loop, server.sockets[0].getsockname()[1]


async def copy(reader, writer, may=None):
    try:
        while some := await reader.read(65536):
            if may:
                await may.wait()
            writer.write(some)
            await writer.drain()
    except OSError:
        pass
    finally:
        # Whoever hangs up ends both ways.
        writer.close()


class Way:
    """A way to the broker that can be cut: connections stay open and silent, as behind a dead switch, and what was sent
    meanwhile arrives when it is mended."""

    def __init__(self):
        self.is_open, self.leads_to = asyncio.Event(), None
        self.is_open.set()
        self.loop, self.port = answer(self.take)

    async def take(self, reader, writer):
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.leads_to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, back, self.is_open), copy(there, writer, self.is_open))

    def cut(self):
        self.loop.call_soon_threadsafe(self.is_open.clear)

    def mend(self):
        self.loop.call_soon_threadsafe(self.is_open.set)


class Broker:
    """One Apache Kafka. Who comes by `way` is told to go on by it."""

    def __init__(self, work, way=None):
        self.dir = work / "kafka"
        self.dir.mkdir()
        self.address, control = free_address(), free_address()
        self.port = int(self.address.rpartition(":")[2])
        settings = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@{control}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{control}",
            "advertised.listeners": f"PLAINTEXT://{self.address}", "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "log.dirs": self.dir / "data",
            "auto.create.topics.enable": "false", "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.replication.factor": 1, "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1, "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4, "log.cleaner.dedupe.buffer.size": 33554432,
        }
        if way:
            way.leads_to = int(free_address().rpartition(":")[2])
            settings["listeners"] += f",WAY://127.0.0.1:{way.leads_to}"
            settings["advertised.listeners"] += f",WAY://127.0.0.1:{way.port}"
            settings["listener.security.protocol.map"] += ",WAY:PLAINTEXT"
        (self.dir / "server.properties").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        (self.dir / "log4j2.properties").write_text(
            "rootLogger.level = WARN\nrootLogger.appenderRef.out.ref = OUT\nappender.out.type = Console\nappender.out.name = OUT\n"
            "appender.out.layout.type = PatternLayout\nappender.out.layout.pattern = %d %p %c{1} %m%n\n")
        self.java("kafka.tools.StorageTool", "format", "-t", "Y2FicmFuay10ZXN0czAwMA", "-c", self.dir / "server.properties").wait()
        self.start()

    def start(self):
        self.process = self.java("kafka.Kafka", self.dir / "server.properties")
        wait_for("the broker", lambda: listens(("127.0.0.1", self.port)), 90)

    def java(self, *arguments):
        heap = ["-Xms512m", "-Xmx512m", "-Xmn256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command = ["java", *heap, f"-Dlog4j2.configurationFile={self.dir}/log4j2.properties", "-cp", f"{os.environ['KAFKA_LIB']}/*"]
        return spawn([*command, *arguments], self.dir / "server.log")


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


class Release:
    """What Kubernetes has been told to run: a program, and the chart it was rendered with; with `plain_text` as if without
    the value `clusterTls`."""

    def __init__(self, work, broker, program, rendered=RENDERED, plain_text=False):
        self.work, self.broker, self.program = work, broker, program
        objects = [o for o in yaml.safe_load_all(pathlib.Path(rendered).read_text()) if o]
        self.objects = {(o["kind"], o["metadata"]["name"]): o for o in objects}
        config = self.objects["ConfigMap", "scale-config"]["data"]["cabrank.toml"]
        self.shards = tomllib.loads(config)["kafka"]["shards"]
        if plain_text:
            config = re.sub(r"(?s)\[cluster\].*?(?=\n\[(?!cluster))", "", config)
        elif "[cluster.tls]" in config:
            config = config.replace("/etc/cabrank/cluster", str(papers(work)))
        with tempfile.NamedTemporaryFile("w", dir=work, prefix="cabrank-", suffix=".toml", delete=False) as toml:
            toml.write(config)
        self.toml = toml.name
        self.version = self.run("--version").stdout.strip()

    def run(self, *arguments, **settings):
        """A command of this release at the operator's desk."""
        env = os.environ | {"CABRANK_GATEWAY__KEYS__SECRET": SECRET, "CABRANK_KAFKA__PREFIX": "scale."}
        env |= {"CABRANK_KAFKA__SHARDS": str(self.shards), "CABRANK_KAFKA__REPLICATION": "1"}
        return subprocess.run([self.program, *arguments], env=env, capture_output=True, text=True, **({"check": True} | settings))

    def make_topics(self):
        """The chart's Job before an install or upgrade."""
        job = self.start("Job", "scale-topics", "scale-topics", "127.0.0.1")
        if job.process.wait(timeout=120) != 0:
            raise SystemExit(f"the topics job failed: {job.log.read_text()}")

    def audit(self, *more):
        """Nothing is under way any more: a ride that is open is a violation, too."""
        try:
            print(self.run("audit", "--brokers", self.broker.address, "--complete", *more).stdout.strip())
        except subprocess.CalledProcessError as found:
            wrong(f"the audit: {found.stdout}{found.stderr}")

    def start(self, kind, owner, name, ip, broker=None):
        return Pod(self, self.objects[kind, owner]["spec"]["template"]["spec"], name, ip, broker or self.broker.address)


class Pod:
    """A pod of one container, and the kubelet that looks after it."""

    def __init__(self, release, spec, name, ip, broker):
        self.release, self.name, self.ip, self.spec, self.broker = release, name, ip, spec, broker
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
        env |= {"CABRANK_CONFIG": release.toml, "CABRANK_KAFKA__BROKERS": broker, "PATH": os.environ["PATH"]}
        self.log = release.work / f"{name}.log"
        self.process = spawn([release.program, *arguments], self.log, env)
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
        wait_for(lambda: f"{self.name} is ready: {self.log.read_text()[-500:]}", lambda: self.ready, 180)
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
        self.going, self.ready = True, False
        self.process.kill()
        self.process.wait()

    def freeze(self):
        """The pod and its kubelet stand still, as on a machine that does."""
        self.going, self.ready = True, False
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)
        self.going = False
        threading.Thread(target=self.look_after, daemon=True).start()

    def again(self):
        """The same pod, started anew."""
        return Pod(self.release, self.spec, self.name, self.ip, self.broker)


class StatefulSet:
    """Nodes, made side by side and taken away from the last (podManagementPolicy: Parallel)."""

    def __init__(self, release, owner, first_ip):
        self.release, self.owner, self.first_ip = release, owner, first_ip
        self.pods = []

    def make(self, number):
        return self.release.start("StatefulSet", self.owner, f"{self.owner}-{number}", f"127.0.2.{self.first_ip + number}")

    def scale(self, count):
        while len(self.pods) > count:
            self.pods.pop().stop()
        made = [self.make(number) for number in range(len(self.pods), count)]
        self.pods += made
        for pod in made:
            pod.wait_ready()


class Deployment:
    """Gateways; one that is new has an address nobody had before."""

    def __init__(self, release, owner, count):
        self.release, self.owner, self.made = release, owner, 0
        self.pods = [self.make() for _ in range(count)]

    def make(self):
        self.made += 1
        return self.release.start("Deployment", self.owner, f"{self.owner}-{self.made}", f"127.0.1.{self.made}")

    def wait_ready(self):
        for pod in self.pods:
            pod.wait_ready()


class Service:
    """The city's address: connections go in turn to the gateways that are ready, and stay there."""

    def __init__(self, gateways):
        self.gateways, self.turn = gateways, 0
        _, port = answer(self.take)
        self.url = f"http://127.0.0.1:{port}"

    async def take(self, reader, writer):
        ready = [pod for pod in self.gateways.pods if pod.ready]
        try:
            self.turn += 1
            pod = ready[self.turn % len(ready)]
            there, back = await asyncio.open_connection(pod.ip, pod.ports["http"])
        except (OSError, ZeroDivisionError):
            writer.close()
            return
        await asyncio.gather(copy(reader, back), copy(there, writer))


class Load:
    """The city's people, by `cabrank load`."""

    def __init__(self, release, urls, seconds, drivers, rides, pings, *more):
        self.log = release.work / "load.log"
        command = [release.program, "load", "--secret", SECRET, "--no-probe", "--seconds", str(int(seconds)), "--drivers", str(drivers)]
        command += ["--rides-per-second", str(rides), "--pings-per-second", str(pings), "--nearby-per-second", "10", "--decline", "0.05"]
        command += [word for url in urls for word in ("--url", url)]
        self.process = spawn([*command, *more], self.log, os.environ | {"CABRANK_GATEWAY__KEYS__SECRET": SECRET})

    def stop(self):
        """No new rides; those under way are called off."""
        self.process.send_signal(signal.SIGTERM)

    def end(self, patience=150.0):
        """Every ride it was promised has its end, and is in the log as it saw it: it says so itself. It waits a minute for rides
        whose end it has not seen, as a killed gateway told nobody, and then reads the log."""
        code = self.process.wait(timeout=patience)
        said = self.log.read_text()
        print("\n".join(f"    {line}" for line in said.splitlines() if not line.startswith(("measuring:", "warming", "ending:"))))
        # On a busy machine the generator may be late, which spoils its latencies, but neither its rides nor its audit.
        is_late = "NOT VALID: the generator itself was late" in said and re.search("^(audit: )?0 violations", said, re.MULTILINE)
        if code != 0 and not is_late:
            wrong(f"the load ended with {code}")


class Probers:
    """Ask all shards for committed answers, ten times a second each, and remember the longest silence of each prober, one
    that lasts included. Reinstating a driver nobody has suspended changes nothing, but it is a command like any other."""

    def __init__(self, doors, token):
        self.doors, self.token, self.last_refusal = doors, token, "nobody answered"
        self.lock, self.failed, self.answered, self.going = threading.Lock(), 0, 0, True
        # By prober: when it was answered last (at first: began), its longest silence, and who was never answered.
        self.last = dict.fromkeys(range(PROBERS), time.monotonic())
        self.longest, self.unanswered = {}, set(range(PROBERS))
        self.threads = [threading.Thread(target=self.ask, args=(n,), daemon=True) for n in range(PROBERS)]
        for thread in self.threads:
            thread.start()

    def ask(self, number):
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        while self.going:
            door = self.doors[number % len(self.doors)]
            path = f"{door}/v1/drivers/scale-probe-{number}/reinstate"
            request = urllib.request.Request(path, data=b"{}", headers=headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    answer.read()
                with self.lock:
                    now = time.monotonic()
                    self.answered += 1
                    self.unanswered.discard(number)
                    self.longest[number] = max(self.longest.get(number, 0.0), now - self.last[number])
                    self.last[number] = now
            except urllib.error.HTTPError as refused:
                with self.lock:
                    self.failed += 1
                    self.last_refusal = f"{refused.code} {refused.read(200)!r}"
            except (OSError, http.client.HTTPException) as why:
                with self.lock:
                    self.failed += 1
                    self.last_refusal = repr(why)
            time.sleep(0.1)

    def take_each(self):
        """The longest silence of each prober since the last look, one that goes on included."""
        with self.lock:
            now = time.monotonic()
            each = {number: max(self.longest.get(number, 0.0), now - last) for number, last in self.last.items()}
            self.longest.clear()
            return each

    def take(self):
        """The longest silence of all since the last look."""
        return max(self.take_each().values(), default=0.0)

    @staticmethod
    def homes(release):
        """The shard that answered each prober last: the log's events are named SHARD-NUMBER."""
        events = release.run("events", "--brokers", release.broker.address).stdout
        outcomes = re.finditer(r"^\S+ +(\d+)-\d+ command\.outcome +driver/scale-probe-(\d+) ", events, re.MULTILINE)
        return {int(found[2]): int(found[1]) for found in outcomes}

    def calm(self):
        """The longest silence while nothing happens; everybody must have been answered by now."""
        if self.unanswered:
            wrong(f"probers {sorted(self.unanswered)} get no answers: {self.last_refusal}")
        return self.take()


class Business:
    """The services beside the city, over files instead of PostgreSQL, and a payment provider that plays."""

    NAMES = ("order", "payment", "forecast")

    def __init__(self, release, door):
        self.release = release
        self.addresses = {name: free_address() for name in ("provider", *self.NAMES)}
        log = ["--brokers", release.broker.address]
        self.arguments = {
            "provider": ["provider-sim", "--ledger", release.work / "ledger.jsonl"],
            "order": ["service", "order", *log, "--gateway", door],
            "payment": ["service", "payment", *log, "--provider", f"http://{self.addresses['provider']}"],
            "forecast": ["service", "forecast", *log],
        }
        self.running = {}
        for name in self.addresses:
            self.start(name)
        for name in self.NAMES:
            wait_for(f"{name} answers", lambda: self.answers(name))

    def answers(self, name):
        try:
            return get(f"http://{self.addresses[name]}/healthz")
        except OSError:
            return False

    def start(self, name):
        env = os.environ | {"CABRANK_CONFIG": self.release.toml, "CABRANK_GATEWAY__KEYS__SECRET": SECRET}
        arguments = [*self.arguments[name], "--listen", self.addresses[name]]
        if name in self.NAMES:
            arguments += ["--database", self.release.work / f"{name}.db"]
        self.running[name] = spawn([self.release.program, *arguments], self.release.work / f"{name}.log", env)

    def kill(self, name):
        self.running[name].kill()
        self.running[name].wait()

    def targets(self):
        return {name: [self.addresses[name]] for name in self.NAMES}

    def settle(self):
        """Waits until no ride's money is under way and all that was said is applied: then it can be audited. Needs the
        gateways: what is not paid for is called off there."""
        token = {"Authorization": f"Bearer {self.release.run('token', '--role', 'ops').stdout.strip()}"}
        before, calm_since = None, time.monotonic()

        def is_settled():
            nonlocal before, calm_since
            try:
                sagas = json.loads(get(f"http://{self.addresses['order']}/v1/sagas", **token))
                applied = [re.search(r"(?m)^cabrank_service_events_applied_total\S* (\d+)$",
                                     get(f"http://{self.addresses[name]}/metrics").decode())[1] for name in self.NAMES]
            except OSError:
                return False
            under_way = sum(sagas.get(state, 0) for state in ("open", "cancelling", "capturing", "voiding"))
            if under_way or applied != before:
                before, calm_since = applied, time.monotonic()
            return time.monotonic() - calm_since >= 2 and sagas

        sagas = wait_for("all money is settled", is_settled, 90, 0.25)
        say("all money is settled:", ", ".join(f"{state} {rides}" for state, rides in sagas.items()))

    def audit(self):
        """Rides, and their orders and money: each held, taken and given back once, to the cent."""
        self.release.audit("--services", self.release.work)


class Prometheus:
    """Scrapes the pods under the jobs of deploy/prometheus.yaml, every second. `rules` changes the text of the alerts."""

    def __init__(self, work, targets, rules=lambda text: text):
        data = work / "prometheus"
        data.mkdir()
        self.url = f"http://{free_address()}"
        config = yaml.safe_load((HERE / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "2s"}
        (data / "alerts.yaml").write_text(rules(ALERTS.read_text()))
        config["rule_files"] = ["alerts.yaml"]
        config["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
            for job in config["scrape_configs"] if job["job_name"] in targets]
        (data / "prometheus.yaml").write_text(yaml.safe_dump(config))
        flags = [f"--config.file={data}/prometheus.yaml", f"--storage.tsdb.path={data}/tsdb", f"--web.listen-address={self.url[7:]}"]
        self.process = spawn(["prometheus", *flags], work / "prometheus.log")

    def ask(self, expr):
        query = urllib.parse.urlencode({"query": expr})
        return json.loads(get(f"{self.url}/api/v1/query?{query}", timeout=20))["data"]["result"]

    def firing(self):
        return {of["metric"]["alertname"] for of in self.ask('ALERTS{alertstate="firing"}')}

    def extremes(self, expr, begin, end):
        """The least and the most that a panel showed meanwhile; None: it showed nothing."""
        query = urllib.parse.urlencode({"query": expr, "start": begin, "end": end, "step": 1})
        series = json.loads(get(f"{self.url}/api/v1/query_range?{query}", timeout=20))["data"]["result"]
        values = [float(value) for of in series for _, value in of["values"]]
        values = [value for value in values if value == value]
        return (min(values), max(values)) if values else None


def queries():
    """Every query of every panel, every figure, and what each alert compares."""
    for path in sorted((HERE / "helm/cabrank/files/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "1m")
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
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


def play(name, run, args):
    """Runs with a directory to work in, ends what was started, says what was wrong."""
    work = pathlib.Path(tempfile.mkdtemp(prefix=f"cabrank-{name.replace(' ', '-')}-"))
    # Who is asked to end ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(args, work)
    except BaseException as why:
        WRONG.append(repr(why))
        raise
    finally:
        for process in STARTED:
            if process.poll() is None:
                process.kill()
                process.wait()
        if WRONG:
            print(f"what the processes said is in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{name}: in order" if not WRONG else f"{name}: {len(WRONG)} things are wrong")
    return 1 if WRONG else 0
