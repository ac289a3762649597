"""A game day: breaks a city on purpose, fault by fault, while Prometheus looks on with the alerts that are shipped, and says
which alert fired when, what the boards showed, and how long after the repair all was green. The table in docs/game-day.md
is this program's. Three nodes, two gateways and the services, as pods.py plays them; a load of rides goes on throughout.

Fails if an alert that must fire does not, or one that must not does; if it does not end after the repair; and if at the end
the audit of rides, orders and money finds anything. The rates that alerts watch are over minutes, so some stay for a while after all is well: those
are named, and not waited for. --shorten divides how long a condition must hold (`for`) and how often it is looked at; what
rates look back over stays. More than 3 makes CabrankShardNotServed impatient of an ordinary takeover."""

import argparse
import os
import re
import signal
import sys
import time

from pods import Broker, Business, Deployment, Load, Prometheus, Release, Service, StatefulSet, Way, play, say, wait_for, wrong

# What a fault may bring for some minutes besides what is expected of it: rates and quantiles look back.
LOOK_BACK = {"CabrankOffersSlow", "CabrankCommandsSlow", "CabrankCommitsSlow", "CabrankTakeoverSlow", "CabrankBusy", "CabrankLag"}
BOARDS = {
    "processes up": "sum(up)",
    "shards nobody serves": "cabrank:shards_unserved",
    "leases": "sum(cabrank_lease_held)",
    "lag": "max(cabrank:shard_lag:max)",
    "drivers' sockets": 'sum(cabrank_sockets_open{role="driver"})',
    "commands/s": "sum(rate(cabrank_commands_total[10s]))",
    "breaker": "cabrank_provider_breaker",
}


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--faults", help="only these, by name, separated by commas", type=lambda names: names.split(","))
    flags.add_argument("--shorten", type=float, default=1)
    flags.add_argument("--rides-per-second", type=float, default=10)
    flags.add_argument("--pings-per-second", type=float, default=300)
    flags.add_argument("--drivers", type=int, default=300)
    args = flags.parse_args()
    if unknown := set(args.faults or []) - set(FAULTS):
        flags.error(f"no such faults: {', '.join(unknown)}; choose from {', '.join(FAULTS)}")
    return play("game day", run, args)


def shortened(factor):
    """The alerts, with what must hold for a minute holding for less."""

    def seconds(found):
        return f"{found[1]}{int(found[2]) * {'s': 1, 'm': 60, 'h': 3600}[found[3]] / factor * 1000:.0f}ms"

    return lambda text: re.sub(r"(\b(?:for|interval): )(\d+)([smh])\b", seconds, text)


class City:
    def __init__(self, args, work):
        self.way = Way()
        self.broker = Broker(work, self.way)
        self.release = Release(work, self.broker, os.environ["CABRANK"])
        self.release.make_topics()
        self.nodes = StatefulSet(self.release, "scale-matcher", 1)
        self.nodes.pods = [self.nodes.make(number) for number in (0, 1)]
        # The last node reaches the broker by a way that can be cut.
        by_way = f"127.0.0.1:{self.way.port}"
        self.nodes.pods.append(self.release.start("StatefulSet", "scale-matcher", "scale-matcher-2", "127.0.2.3", by_way))
        self.gateways = Deployment(self.release, "scale-gateway", 2)
        for pod in self.nodes.pods + self.gateways.pods:
            pod.wait_ready()
        self.service = Service(self.gateways)
        self.business = Business(self.release, self.service.url)
        targets = {"gateway": [f"{pod.ip}:{pod.ports['http']}" for pod in self.gateways.pods]}
        targets |= {"matcher": [f"{pod.ip}:{pod.ports['ops']}" for pod in self.nodes.pods]}
        self.prometheus = Prometheus(work, targets | self.business.targets(), shortened(args.shorten))
        self.load = Load(self.release, [self.service.url], 3600, args.drivers, args.rides_per_second, args.pings_per_second)

    def again(self, pods, number):
        pods[number] = pods[number].again()
        return pods[number]

    # -- faults: what is broken, and what mends it --------------------------------------------------------------

    def kill_node(self):
        self.nodes.pods[0].kill()
        return lambda: self.again(self.nodes.pods, 0).wait_ready()

    def freeze_node(self):
        self.nodes.pods[1].freeze()
        return self.nodes.pods[1].thaw

    def cut_off_node(self):
        self.way.cut()
        return self.way.mend

    def kill_gateway(self):
        self.gateways.pods[0].kill()
        return lambda: self.again(self.gateways.pods, 0).wait_ready()

    def kill_service(self):
        self.business.kill("order")

        def mend():
            self.business.start("order")
            wait_for("order answers", lambda: self.business.answers("order"))

        return mend

    def provider_away(self):
        self.business.kill("provider")
        return lambda: self.business.start("provider")

    def kill_all_nodes(self):
        for pod in self.nodes.pods:
            pod.kill()

        def mend():
            for pod in [self.again(self.nodes.pods, number) for number in range(3)]:
                pod.wait_ready()

        return mend

    def freeze_broker(self):
        self.broker.process.send_signal(signal.SIGSTOP)
        return lambda: self.broker.process.send_signal(signal.SIGCONT)

    def kill_broker(self):
        self.broker.process.kill()
        self.broker.process.wait()
        return self.broker.start


# What fires, and what else may.
FAULTS = {
    "kill-node": (City.kill_node, {"CabrankProcessDown"}, LOOK_BACK),
    "freeze-node": (City.freeze_node, {"CabrankProcessDown"}, LOOK_BACK | {"CabrankNoLease"}),
    "cut-off-node": (City.cut_off_node, {"CabrankNoLease"}, LOOK_BACK),
    "kill-gateway": (City.kill_gateway, {"CabrankProcessDown"}, set()),
    "kill-service": (City.kill_service, {"CabrankProcessDown"}, {"CabrankServiceBehind"}),
    "provider-away": (City.provider_away, {"CabrankProviderAway"}, set()),
    "kill-all-nodes": (City.kill_all_nodes, {"CabrankShardNotServed", "CabrankProcessDown"}, LOOK_BACK),
    "freeze-broker": (City.freeze_broker, {"CabrankNoLease", "CabrankShardNotServed"}, LOOK_BACK),
    "kill-broker": (City.kill_broker, {"CabrankNoLease", "CabrankShardNotServed"}, LOOK_BACK),
}


def play_fault(city, name):
    breaks, expected, may = FAULTS[name]
    prometheus = city.prometheus
    before, began, began_unix = prometheus.firing(), time.monotonic(), time.time()
    fired = {}

    def look():
        for alert in prometheus.firing() - before - set(fired):
            fired[alert] = time.monotonic() - began
            if alert not in expected | may:
                wrong(f"{name}: {alert} fires, and nobody expected it")
        return set(fired)

    say(f"{name}: it is broken")
    mend = breaks(city)
    try:
        wait_for(f"{name}: {', '.join(sorted(expected))} fire", lambda: expected <= look(), 240, 0.5)
    except SystemExit as never:
        wrong(str(never))
    mended = time.monotonic()
    mend()
    repaired = time.monotonic() - mended
    try:
        wait_for(f"{name}: {', '.join(sorted(expected))} end", lambda: look() and not expected & prometheus.firing(), 240, 0.5)
    except SystemExit as never:
        wrong(str(never))
    green = time.monotonic() - mended
    boards = {board: prometheus.extremes(expr, began_unix, time.time()) or (0, 0) for board, expr in BOARDS.items()}
    shown = ", ".join(f"{board} {low:.0f} to {high:.0f}" for board, (low, high) in boards.items() if low != high)
    alerts = ", ".join(f"{alert} after {after:.0f} s" for alert, after in fired.items())
    say(f"{name}: {alerts}; green {green:.0f} s after the repair began ({repaired:.0f} s until what was broken ran); boards: {shown}")
    if stay := prometheus.firing():
        say(f"    still firing, as it looks back: {', '.join(sorted(stay))}")
        if stay - LOOK_BACK:
            wrong(f"{name}: {', '.join(sorted(stay - LOOK_BACK))} did not end")


def run(args, work):
    city = City(args, work)
    # Rates need some seconds of the city as it is.
    time.sleep(20)
    if early := city.prometheus.firing():
        wrong(f"nothing is broken yet, and {', '.join(early)} fires")
    for name in args.faults or FAULTS:
        play_fault(city, name)
        time.sleep(5)
    city.load.stop()
    city.load.end()
    city.business.settle()
    for gateway in city.gateways.pods:
        gateway.stop()
    city.nodes.scale(0)
    city.business.audit()


if __name__ == "__main__":
    sys.exit(main())
