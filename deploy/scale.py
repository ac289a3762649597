"""More and fewer nodes: under load their number goes 1, 3, 2, as the chart does it (pods.py). Fails if a shard gives no
committed answer for longer than the bound, if a probe that must not fails, if a pod needs its SIGKILL, if the load is not
well, or if the audit finds anything, an open ride included.
With Prometheus: order, payment and forecast work beside the city, it scrapes all of them as deploy/prometheus.yaml does, and
every query of every board and rule must have data; at the end orders and money are audited, too."""

import argparse
import os
import shutil
import sys
import time

from pods import Broker, Business, Deployment, Load, Probers, Prometheus, Release, StatefulSet, ask_everything, play
from pods import say, wrong


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rides-per-second", type=float, default=10)
    flags.add_argument("--pings-per-second", type=float, default=300)
    flags.add_argument("--drivers", type=int, default=300)
    flags.add_argument("--phase", type=float, default=20, help="seconds of load at each number of nodes")
    flags.add_argument("--pause", type=float, default=1.0, help="longest silence of a shard, seconds")
    return play("scale", run, flags.parse_args())


def run(args, work):
    broker = Broker(work)
    say("a broker at", broker.address)
    release = Release(work, broker, os.environ["CABRANK"])
    release.make_topics()
    say("the topics are made")

    nodes = StatefulSet(release, "scale-matcher", 1)
    nodes.scale(1)
    gateways = Deployment(release, "scale-gateway", 2)
    gateways.wait_ready()
    doors = [f"http://{gateway.ip}:{gateway.ports['http']}" for gateway in gateways.pods]
    prometheus = business = None
    if shutil.which("prometheus"):
        business = Business(release, doors[0])
        targets = {"gateway": [door[7:] for door in doors], "matcher": [f"127.0.2.{n}:7001" for n in (1, 2, 3)]}
        prometheus = Prometheus(work, targets | business.targets())
    else:
        say("no Prometheus here: no query is asked")
        if os.environ.get("CI") == "true":
            wrong("CI=true, and Prometheus is missing")

    token = release.run("token", "--role", "ops").stdout.strip()
    seconds = 3 * args.phase + 25
    load = Load(release, doors, seconds, args.drivers, args.rides_per_second, args.pings_per_second)
    time.sleep(5)
    probers = Probers(doors, token)
    time.sleep(args.phase)
    say(f"one node: longest silence of a shard {probers.calm():.2f} s")
    for count in (3, 2):
        nodes.scale(count)
        time.sleep(args.phase)
        pause = probers.take()
        say(f"{count} nodes: longest silence of a shard {pause:.2f} s, {probers.failed} of {probers.answered + probers.failed} commands failed so far")
        if pause > args.pause:
            wrong(f"a shard was silent for {pause:.2f} s when the nodes became {count}; at most {args.pause}")
    probers.going = False
    load.end(seconds + 60)
    if prometheus:
        ask_everything(prometheus)
        most = prometheus.ask('max by (job) (max_over_time(process_resident_memory_bytes{job=~"gateway|matcher"}[5m]))')
        say("memory at most:", ", ".join(f"{of['metric']['job']} {float(of['value'][1]) / 2**20:.0f} MiB" for of in most))
        business.settle()
    for gateway in gateways.pods:
        gateway.stop()
    nodes.scale(0)
    (business or release).audit()


if __name__ == "__main__":
    sys.exit(main())
