"""More and fewer nodes: under load their number goes 1, 3, 2, as the chart does it (pods.py); then, with --reshard,
`cabrank reshard` gives the city more shards. Fails if a shard gives no committed answer for longer than the bound, or people
who move do not, if a probe that must not fails, if a pod needs its SIGKILL, if the load is not well, or if the audit finds
anything, an open ride included.
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
    flags.add_argument("--nodes", default=[1, 3, 2], type=lambda counts: [int(n) for n in counts.split(",")], help="how many, in turn")
    flags.add_argument("--reshard", type=int, metavar="N", help="then N shards")
    flags.add_argument("--pause", type=float, help="longest silence, seconds; by default 1 of a shard, 2 of people who move")
    return play("scale", run, flags.parse_args())


def run(args, work):
    broker = Broker(work)
    say("a broker at", broker.address)
    release = Release(work, broker, os.environ["CABRANK"])
    release.make_topics()
    say("the topics are made")

    nodes = StatefulSet(release, "scale-matcher", 1)
    nodes.scale(args.nodes[0])
    gateways = Deployment(release, "scale-gateway", 2)
    gateways.wait_ready()
    doors = [f"http://{gateway.ip}:{gateway.ports['http']}" for gateway in gateways.pods]
    prometheus = business = None
    if shutil.which("prometheus"):
        business = Business(release, doors[0])
        targets = {"gateway": [door[7:] for door in doors], "matcher": [f"127.0.2.{n + 1}:7001" for n in range(max(args.nodes))]}
        prometheus = Prometheus(work, targets | business.targets())
    else:
        say("no Prometheus here: no query is asked")
        if os.environ.get("CI") == "true":
            wrong("CI=true, and Prometheus is missing")

    token = release.run("token", "--role", "ops").stdout.strip()
    load = Load(release, doors, 3600, args.drivers, args.rides_per_second, args.pings_per_second)
    time.sleep(5)
    probers = Probers(doors, token)
    time.sleep(args.phase)
    say(f"{len(nodes.pods)} nodes: longest silence of a shard {probers.calm():.2f} s")
    for count in args.nodes[1:]:
        more_or_fewer_nodes(args, nodes, probers, count)
    if args.reshard:
        silences = more_shards(args, release, probers)
    probers.going = False
    load.stop()
    load.end()
    if args.reshard:
        judge_moves(args, release, silences)
    if prometheus:
        ask_everything(prometheus)
        most = prometheus.ask('max by (job) (max_over_time(process_resident_memory_bytes{job=~"gateway|matcher"}[5m]))')
        say("memory at most:", ", ".join(f"{of['metric']['job']} {float(of['value'][1]) / 2**20:.0f} MiB" for of in most))
        business.settle()
    for gateway in gateways.pods:
        gateway.stop()
    nodes.scale(0)
    (business or release).audit()


def failures(probers):
    return f"{probers.failed} of {probers.answered + probers.failed} commands failed so far"


def more_or_fewer_nodes(args, nodes, probers, count):
    nodes.scale(count)
    time.sleep(args.phase)
    pause, bound = probers.take(), args.pause or 1.0
    say(f"{count} nodes: longest silence of a shard {pause:.2f} s, {failures(probers)}")
    if pause > bound:
        wrong(f"a shard was silent for {pause:.2f} s when the nodes became {count}; at most {bound}")


def more_shards(args, release, probers):
    """How long each prober had no answer meanwhile."""
    began = time.monotonic()
    grown = release.run("reshard", "--to", str(args.reshard), "--brokers", release.broker.address, check=False)
    for line in (grown.stdout + grown.stderr).splitlines():
        say("reshard:", line)
    if grown.returncode != 0:
        wrong(f"reshard ended with {grown.returncode}")
    say(f"reshard took {time.monotonic() - began:.1f} s")
    time.sleep(args.phase)
    say(f"{args.reshard} shards: {failures(probers)}" + (f", the last: {probers.last_refusal}" if probers.failed else ""))
    return probers.take_each()


def judge_moves(args, release, silences):
    homes = Probers.homes(release)
    for shard in range(args.reshard):
        of_shard = [silence for number, silence in silences.items() if homes.get(number) == shard]
        if shard < release.shards:
            say(f"shard {shard}: {len(of_shard)} probers stayed, longest silence {max(of_shard, default=0.0):.2f} s")
            continue
        pause = max(of_shard, default=float("inf"))
        say(f"shard {shard}: {len(of_shard)} probers moved there, longest silence {pause:.2f} s")
        bound = args.pause or 2.0
        if pause > bound:
            wrong(f"those who moved to shard {shard} had no answer for {pause:.2f} s; at most {bound}")


if __name__ == "__main__":
    sys.exit(main())
