"""Two releases side by side: rolls a city from an old program to a new one and back, under load, as `helm upgrade` and
`helm rollback` do (pods.py): the topics Job of the release that comes, then nodes one by one from the last, each ready and at
work for the chart's minReadySeconds before the next, and at the same time gateways one by one, each new one ready before an
old one goes. So for a while each release's nodes and gateways work with the other's, and shards, with open rides, move from
release to release in both directions.

The load and the desk are the old release's: people's apps are not upgraded with the city. With --certificates the new release
has `clusterTls`, which the old one does without: then gateways and nodes of the two do not understand each other, and what that
costs is said: searches nobody answers, positions nobody takes. An old release that does not know `cabrank reshard` must make
the new one's refuse, with the old nodes' names.

Fails if a shard gives no
committed answer for longer than the bound, if a pod fails a probe, needs its SIGKILL, says an error or refuses a shard or a
peer, if the load is not well or misses a promised ride, or if either release's audit finds anything, an open ride included."""

import argparse
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pods import RENDERED, Broker, Deployment, Load, Probers, Release, Service, StatefulSet, get, play, say, wrong


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("old")
    flags.add_argument("new")
    flags.add_argument("--certificates", action="store_true", help="the new one with certificates between gateways and nodes")
    flags.add_argument("--old-chart", help="the old release's deploy/check/golden/scale.yaml, if its chart was another")
    flags.add_argument("--rides-per-second", type=float, default=10)
    flags.add_argument("--pings-per-second", type=float, default=300)
    flags.add_argument("--drivers", type=int, default=300)
    flags.add_argument("--phase", type=float, default=5, help="seconds of load before, between and after")
    flags.add_argument("--pause", type=float, default=1.5, help="longest silence of a shard, seconds")
    args = flags.parse_args()
    return play("upgrade", run, args)


class City:
    def __init__(self, release, nodes, gateways):
        self.nodes = StatefulSet(release, "scale-matcher", 1)
        self.nodes.scale(nodes)
        self.gateways = Deployment(release, "scale-gateway", gateways)
        self.gateways.wait_ready()
        self.was = []

    def roll(self, release):
        """`helm upgrade`, or `helm rollback`, to this release."""
        release.make_topics()
        with ThreadPoolExecutor() as both:
            rolled = [both.submit(roll, release) for roll in (self.roll_nodes, self.roll_gateways)]
        for one in rolled:
            one.result()
        if left := [pod.name for pod in self.pods() if pod.release is not release]:
            wrong(f"still of the other release: {', '.join(left)}")

    def roll_nodes(self, release):
        self.nodes.release = release
        at_work = release.objects["StatefulSet", "scale-matcher"]["spec"].get("minReadySeconds", 0)
        for number in reversed(range(len(self.nodes.pods))):
            old = self.nodes.pods[number]
            self.was.append(old)
            old.stop()
            self.nodes.pods[number] = self.nodes.make(number)
            self.nodes.pods[number].wait_ready()
            time.sleep(at_work)

    def roll_gateways(self, release):
        self.gateways.release = release
        for old in list(self.gateways.pods):
            new = self.gateways.make()
            self.gateways.pods.append(new)
            new.wait_ready()
            self.gateways.pods.remove(old)
            self.was.append(old)
            old.stop()

    def pods(self):
        return self.nodes.pods + self.gateways.pods

    def look(self):
        """Nobody is refused, and nobody says an error."""
        for pod in self.pods():
            port = pod.ports.get("ops") or pod.ports["http"]
            metrics = get(f"http://{pod.ip}:{port}/metrics").decode()
            if pod in self.nodes.pods and "\ncabrank_shards_refused" not in metrics:
                wrong(f"{pod.name} does not say how many shards it refuses")
            for refusal in ("cabrank_shards_refused", "cabrank_releases_apart_total"):
                if any(float(line.split()[-1]) > 0 for line in metrics.splitlines() if line.startswith(refusal)):
                    wrong(f"{pod.name}: {refusal} is not 0")

    def errors(self):
        for log in {pod.log for pod in self.was + self.pods()}:
            for line in log.read_text().splitlines():
                is_error = line.startswith("{") and json.loads(line).get("level") == "ERROR"
                if is_error or "panicked at" in line:
                    wrong(f"{log.stem} says {line}")


def run(args, work):
    broker = Broker(work)
    # The release before may not know certificates between gateways and nodes: who wants them asks when all nodes are new.
    old = Release(work, broker, args.old, args.old_chart or RENDERED, plain_text=True)
    new = Release(work, broker, args.new, plain_text=not args.certificates)
    say(f"from {old.version} to {new.version}{', with certificates,' if args.certificates else ''} and back")
    old.make_topics()
    city = City(old, nodes=3, gateways=2)
    if "reshard" not in old.run("--help").stdout:
        refuse_to_grow(city, new)
    upgrade(args, city, old, new)
    city.errors()
    new.audit()
    old.audit()


def refuse_to_grow(city, new):
    asked = new.run("reshard", "--to", str(2 * new.shards), "--brokers", new.broker.address, check=False)
    # Who owns no shard and does not say its name in the group is counted.
    nameless = re.search(r"(\d+) without name", asked.stderr)
    seen = sum(pod.name in asked.stderr for pod in city.nodes.pods) + int(nameless[1] if nameless else 0)
    if asked.returncode != 2 or seen != len(city.nodes.pods):
        wrong(f"reshard must name the old nodes, all of them: exit code {asked.returncode}: {asked.stdout}{asked.stderr}")
    say("reshard:", asked.stderr.strip())


class Positions:
    """How many positions the nodes take a second; each is needed on one node or more."""

    def __init__(self, nodes):
        self.nodes, self.going, self.rates = nodes, True, []
        threading.Thread(target=self.count, daemon=True).start()

    @staticmethod
    def placed(pod):
        try:
            metrics = get(f"http://{pod.ip}:{pod.ports['ops']}/metrics").decode()
        except OSError:
            return 0
        return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("cabrank_node_pings_total"))

    def count(self):
        before = {}
        while self.going:
            now = {pod: self.placed(pod) for pod in list(self.nodes.pods)}
            self.rates.append(sum(max(0, placed - before.get(pod, 0)) for pod, placed in now.items()))
            before = now
            time.sleep(1)

    def take(self):
        rates, self.rates = self.rates, []
        return f"nodes took {min(rates):.0f} to {max(rates):.0f} positions/s, {sum(rates) / len(rates):.0f} on average"


class Searches:
    """Who asks for cars near, ten times a second, at each gateway in turn."""

    def __init__(self, gateways, token):
        self.gateways, self.token, self.going, self.asked, self.failed, self.empty, self.last = gateways, token, True, 0, 0, 0, ""
        threading.Thread(target=self.ask, daemon=True).start()

    def ask(self):
        turn = 0
        while self.going:
            turn += 1
            ready = [pod for pod in self.gateways.pods if pod.ready]
            if ready:
                pod = ready[turn % len(ready)]
                self.ask_one(f"http://{pod.ip}:{pod.ports['http']}/v1/nearby?lat=37.7793&lon=-122.4192&radius=5000&k=5")
            time.sleep(0.1)

    def ask_one(self, url):
        self.asked += 1
        try:
            cars = json.loads(get(url, authorization=f"Bearer {self.token}"))["cars"]
            self.empty += not cars
        except OSError as why:
            self.failed += 1
            self.last = str(why)

    def take(self):
        said = f"{self.failed} of {self.asked} searches failed{f' ({self.last})' if self.failed else ''}, {self.empty} found no car"
        self.asked = self.failed = self.empty = 0
        return said


def upgrade(args, city, old, new):
    service = Service(city.gateways)
    token = old.run("token", "--role", "ops").stdout.strip()
    load = Load(old, [service.url], 3600, args.drivers, args.rides_per_second, args.pings_per_second)
    time.sleep(5)
    probers = Probers([service.url], token)
    time.sleep(args.phase)
    searches, positions = Searches(city.gateways, token), Positions(city.nodes)
    time.sleep(args.phase)
    positions.rates = positions.rates[1:]
    say(f"calm: longest silence of a shard {probers.calm():.2f} s; {searches.take()}; {positions.take()}")
    longest = 0.0
    for release, way in ((new, "forward"), (old, "back")):
        city.roll(release)
        rolling = f"{searches.take()}; {positions.take()}"
        time.sleep(args.phase)
        city.look()
        pause = probers.take()
        longest = max(longest, pause)
        say(f"{way}: longest silence of a shard {pause:.2f} s, {probers.failed} of {probers.answered + probers.failed} commands failed so far")
        say(f"{way}: while it rolled {rolling}")
        say(f"{way}: afterwards {searches.take()}; {positions.take()}")
        if pause > args.pause:
            wrong(f"a shard was silent for {pause:.2f} s on the way {way}; at most {args.pause}")
    if probers.failed:
        say(f"the last that failed: {probers.last_refusal}")
    probers.going = searches.going = positions.going = False
    load.stop()
    load.end()
    for gateway in city.gateways.pods:
        gateway.stop()
    city.was += city.nodes.pods + city.gateways.pods
    city.nodes.scale(0)
    say(f"longest pause of a shard: {longest:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
