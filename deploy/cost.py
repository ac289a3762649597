"""What does a city cost? Processor time of gateway, node and broker, memory, and bytes of the log at rising rates of rides and
positions, by processes over a real broker as pods.py plays them: one gateway, one node, four shards. Prints one table, and
the cost of one more ride and of one more position as the slope between the lowest and the highest rate. Processor time is
what the processes used, whoever else the machine served; the rates are what was done, not what was offered."""

import argparse
import os
import re
import sys
import time

from pods import Broker, Deployment, Load, Release, StatefulSet, get, play, say, wait_for

# Rides and positions offered a second.
STEPS = [(10, 300), (50, 300), (100, 300), (200, 300), (10, 2_000), (10, 10_000)]
TICKS = os.sysconf("SC_CLK_TCK")


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=float, default=15, help="measured seconds of each step")
    flags.add_argument("--settle", type=float, default=8, help="seconds of load before that")
    return play("cost", run, flags.parse_args())


def figures(url):
    """Sums over all series of a name."""
    sums = {}
    for name, labels, value in re.findall(r"^(\w+)(\{[^}]*\})? (\S+)$", get(f"{url}/metrics").decode(), re.M):
        for key in (name, name + labels):
            sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def cpu_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Sample:
    def __init__(self, gateway, node, broker):
        at_gateway = figures(f"http://{gateway.ip}:{gateway.ports['http']}")
        at_node = figures(f"http://{node.ip}:{node.ports['ops']}")
        self.at = time.monotonic()
        self.cpu = [cpu_of(of.process.pid) for of in (gateway, node, broker)]
        self.memory = [of["process_resident_memory_bytes"] / 2**20 for of in (at_gateway, at_node)]
        self.rides = at_node.get('cabrank_events_total{type="ride.requested"}', 0.0)
        self.pings = sum(value for key, value in at_gateway.items() if key.startswith('cabrank_pings_total{') and "accepted" in key)
        self.bytes = sum(file.stat().st_size for file in (broker.dir / "data").rglob("*.log"))


def step(args, work, rides, pings):
    """A city of its own for each step, so that none works on what another left."""
    work.mkdir()
    broker = Broker(work)
    release = Release(work, broker, os.environ["CABRANK"])
    release.make_topics()
    nodes = StatefulSet(release, "scale-matcher", 1)
    nodes.scale(1)
    gateways = Deployment(release, "scale-gateway", 1)
    gateways.wait_ready()
    door = f"http://{gateways.pods[0].ip}:{gateways.pods[0].ports['http']}"
    # A phone says where it is four times a second at most.
    load = Load(release, [door], 3600, max(300, 6 * rides, pings // 4), rides, pings)
    wait_for("the load measures", lambda: "measuring:" in load.log.read_text()[-400:], 120)
    # The broker's compiler, and what queued while drivers came.
    time.sleep(args.settle)
    one = Sample(gateways.pods[0], nodes.pods[0], broker)
    time.sleep(args.seconds)
    two = Sample(gateways.pods[0], nodes.pods[0], broker)
    # Rides and events are audited elsewhere: here nobody waits for their ends.
    load.process.kill()
    for pod in gateways.pods + nodes.pods:
        pod.kill()
    broker.process.kill()
    seconds = two.at - one.at
    cores = [(after - before) / seconds for before, after in zip(one.cpu, two.cpu)]
    done = [(two.rides - one.rides) / seconds, (two.pings - one.pings) / seconds]
    a_ride = (two.bytes - one.bytes) / 1e3 / max(1.0, two.rides - one.rides)
    return [*done, *cores, *two.memory, a_ride]


def run(args, work):
    rows = []
    for number, (rides, pings) in enumerate(STEPS):
        rows.append(row := step(args, work / str(number), rides, pings))
        say(f"{row[0]:.0f} rides/s, {row[1]:,.0f} positions/s")
    print("| rides/s | positions/s | gateway, cores | node, cores | broker, cores | gateway, MiB | node, MiB | log, KB a ride |")
    print("|---|---|---|---|---|---|---|---|")
    for rides, pings, *cores, gateway, node, a_ride in rows:
        print(f"| {rides:.0f} | {pings:,.0f} | " + " | ".join(f"{core:.2f}" for core in cores) + f" | {gateway:.0f} | {node:.0f} | {a_ride:.0f} |")
    for what, column, (low, high), unit in (("ride", 0, (0, 3), "ms"), ("position", 1, (0, 5), "us")):
        more = rows[high][column] - rows[low][column]
        scale = {"ms": 1e3, "us": 1e6}[unit]
        cost = [(rows[high][2 + part] - rows[low][2 + part]) / more * scale for part in range(3)]
        say(f"one more {what}: gateway {cost[0]:.1f} {unit}, node {cost[1]:.1f} {unit}, broker {cost[2]:.1f} {unit} of processor time")


if __name__ == "__main__":
    sys.exit(main())
