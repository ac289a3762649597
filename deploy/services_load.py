#!/usr/bin/env python3
"""Do the services keep up? Offers rides to a server with order, payment and forecast beside it over its embedded log, each a
process of its own, prints how far behind each is through and at the end, then audits orders and money against the ride log.

  CABRANK=target/release/cabrank python3 deploy/services_load.py --rides-per-second 500 --seconds 60

How far behind: as the services say at /metrics (the age of the oldest event that waits, or how late the last was applied). A
service keeps up if that is never above --lag-ms-max, and if all its work is done within --settle-s of the last ride. The run
counts only if the generator was on time and what was offered was let in: else it says NOT VALID and why, because a server
that refuses rides spares the services. Exit code: 0 valid and all keep up, 1 not, 2 not valid. Needs Python 3 and nothing else."""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

NAMES = ["order", "payment", "forecast"]
TICKS = os.sysconf("SC_CLK_TCK")
# Of the rides offered so many may be refused.
REFUSED_MAX = 0.01
# Rates that a load run limits for single people; a thousand sockets stand for a larger city here.
LIMITS_OFF = {
    "CABRANK_GATEWAY__LIMITS__REQUESTS_PER_MINUTE": "0",
    "CABRANK_GATEWAY__LIMITS__FRAMES_PER_SECOND": "0",
    "CABRANK_GATEWAY__INGEST__PINGS_PER_SECOND": "0",
}
CABRANK = os.environ.get("CABRANK", "target/release/cabrank")


class Process:
    """A process of ours; what it complains of goes to a file. Its first line of output says where it answers."""

    def __init__(self, directory, name, *arguments, environment=None):
        self.name = name
        with open(directory / f"{name}.log", "w") as errors:
            self.child = subprocess.Popen(
                [CABRANK, *map(str, arguments)], stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, **(environment or {})})
        self.url = self.child.stdout.readline().strip()
        if not self.url.startswith("http://"):
            raise SystemExit(f"{name} did not start: see {directory}/{name}.log")
        # What else it says is not waited for.
        threading.Thread(target=self.child.stdout.read, daemon=True).start()

    def cpu_s(self):
        """Processor seconds so far."""
        text = pathlib.Path(f"/proc/{self.child.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def end(self, patience=60.0):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(patience)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def fetch(url, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
        return answer.read().decode()


def gauges(service):
    """The service's own figures by name."""
    found = re.findall(r'^cabrank_service_(\w+)\{[^}]*\} (\S+)$', fetch(service.url + "/metrics"), re.M)
    return {name: float(value) for name, value in found}


class Watch:
    """How far behind each service is, second by second."""

    def __init__(self, services):
        self.services = services
        self.seen = {service.name: [] for service in services}
        self.failures = 0

    def look(self):
        behind = {}
        for service in self.services:
            try:
                behind[service.name] = 1e3 * gauges(service)["lag_seconds"]
            except OSError:
                # A service too busy to answer is behind, too.
                self.failures += 1
                continue
            self.seen[service.name].append(behind[service.name])
        return behind


def pass_on(lines):
    """What the load generator complains of; not what it is at."""
    for line in lines:
        if line.split(":")[0] not in ("connecting", "warming up", "measuring", "ending"):
            print(f"load: {line.rstrip()}", flush=True)


def share(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rides-per-second", type=float, default=500.0)
    parse.add_argument("--seconds", type=float, default=60.0)
    parse.add_argument("--drivers", type=int, help="default: six for each ride a second, at least 60")
    parse.add_argument("--pings-per-second", type=float, default=500.0)
    parse.add_argument("--lag-ms-max", type=float, default=5_000.0, help="further behind than this does not keep up")
    parse.add_argument("--settle-s", type=float, default=15.0, help="after the last ride all is to be done within this")
    parse.add_argument("--provider-ms", type=int, default=40, help="slowest answer of the payment provider; the quickest is 5")
    parse.add_argument("--load", nargs=argparse.REMAINDER, default=[], help="further flags of cabrank load")
    args = parse.parse_args()
    drivers = args.drivers or max(60, int(6 * args.rides_per_second))
    with tempfile.TemporaryDirectory(prefix="cabrank-services-") as scratch:
        return run(args, drivers, pathlib.Path(scratch))


def run(args, drivers, scratch):
    (scratch / "services").mkdir()
    processes = []

    def start(name, *arguments, environment=None):
        processes.append(Process(scratch, name, *arguments, environment=environment))
        return processes[-1]

    try:
        server = start("server", "serve", "--data-dir", scratch / "data", "--listen", "127.0.0.1:0", environment=LIMITS_OFF)
        provider = start("provider", "provider-sim", "--ledger", scratch / "services/ledger.jsonl",
                         "--latency-max-ms", args.provider_ms)
        services = start_services(start, server, provider, scratch)
        return measure(args, drivers, scratch, server, provider, services)
    finally:
        for process in reversed(processes):
            process.end()


def start_services(start, server, provider, scratch):
    database = {name: ["--database", scratch / f"services/{name}.db"] for name in NAMES}
    # Order and payment hear each other: payment's address is chosen first.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for_payment = "127.0.0.1:%d" % free.getsockname()[1]
    order = start("order", "service", "order", "--url", server.url, "--payment", f"http://{for_payment}", *database["order"])
    payment = start("payment", "service", "payment", "--order", order.url, "--provider", provider.url,
                    "--listen", for_payment, *database["payment"])
    forecast = start("forecast", "service", "forecast", "--url", server.url, *database["forecast"])
    return [order, payment, forecast]


def measure(args, drivers, scratch, server, provider, services):
    token = subprocess.run([CABRANK, "token", "--role", "ops"], check=True, capture_output=True, text=True).stdout.strip()
    report_file = scratch / "report.json"
    watch, rate = Watch(services), args.rides_per_second
    cpu = {process.name: process.cpu_s() for process in [server, provider, *services]}
    load = subprocess.Popen(
        [CABRANK, "load", "--url", server.url, "--server-pid", str(server.child.pid), "--rides-per-second", str(rate),
         "--pings-per-second", str(args.pings_per_second), "--drivers", str(drivers), "--seconds", str(args.seconds),
         "--no-probe", "--report", str(report_file), *args.load], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    threading.Thread(target=pass_on, args=[load.stderr], daemon=True).start()
    print(f"{rate:g} rides/s for {args.seconds:g} s by {drivers} drivers; ms behind:", flush=True)
    began, said = time.monotonic(), 0
    while load.poll() is None:
        at = time.monotonic()
        behind = watch.look()
        if at - began >= said:
            said += 5
            print(f"  {at - began:4.0f} s  " + "  ".join(f"{name} {ms:.0f}" for name, ms in behind.items()), flush=True)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - at)))
    # All that is left: what the services have read is applied, and no money is under way.
    # A ride that the load left open keeps its hold: that is its driver's matter.
    ended, calm, open_money, before = time.monotonic(), 0, None, None
    while calm < 4 and time.monotonic() - ended < args.settle_s + 60:
        now = {service.name: gauges(service)["events_applied_total"] for service in services}
        counts = json.loads(fetch(services[0].url + "/v1/sagas", token))
        open_money = sum(counts.get(state, 0) for state in ("cancelling", "capturing", "voiding"))
        calm = calm + 1 if open_money == 0 and now == before else 0
        before = now
        time.sleep(0.25)
    settled_s = max(0.0, time.monotonic() - ended - 1.0)
    last = {service.name: gauges(service) for service in services}
    cpu = {process.name: process.cpu_s() - cpu[process.name] for process in [server, provider, *services]}
    for process in [*reversed(services), provider, server]:
        process.end()
    report = json.loads(report_file.read_text()) if report_file.exists() else None
    # Where all rides are over and their money is settled, each must be paid for.
    is_over = report is not None and report["rides"]["open"] == 0 and open_money == 0
    audit = subprocess.run([CABRANK, "audit", "--data-dir", str(scratch / "data"), "--services", str(scratch / "services"),
                            *(["--complete"] if is_over else [])], capture_output=True, text=True)
    return conclude(args, report, watch, last, cpu, settled_s, open_money, audit)


def conclude(args, report, watch, last, cpu, settled_s, open_money, audit):
    if report is None:
        print("NOT VALID: the load generator wrote no report")
        return 2
    rides, invalid = report["rides"], list(report["invalid_because"])
    asked, opened = rides["requested"], rides["acknowledged"]
    if opened < asked * (1 - REFUSED_MAX):
        invalid.append(f"{asked - opened} of {asked} rides were not let in")
    if watch.failures:
        invalid.append(f"{watch.failures} times a service did not say how far behind it was")
    print(f"{asked} rides asked for, {opened} let in; all work done {settled_s:.1f} s after the last of them")
    behind_all = []
    for name in NAMES:
        seen, most = watch.seen[name], 1e3 * last[name]["lag_max_seconds"]
        busy_s = last[name]["busy_seconds_total"]
        keeps_up = max([most, *seen]) <= args.lag_ms_max and last[name]["dead_letters_total"] == 0
        behind_all += [] if keeps_up else [name]
        print(f"{name:9} behind: median {share(seen, 0.5):.0f} ms, 95 % {share(seen, 0.95):.0f} ms, most {max([most, *seen]):.0f} ms, "
              f"at the end {1e3 * last[name]['lag_seconds']:.0f} ms; {last[name]['events_applied_total']:.0f} events in {busy_s:.1f} s of work, "
              f"{1e3 * cpu[name] / max(1, opened):.2f} ms of processor a ride: {'keeps up' if keeps_up else 'DOES NOT KEEP UP'}")
    for name in ("server", "provider"):
        print(f"{name:9} {1e3 * cpu[name] / max(1, opened):.2f} ms of processor a ride")
    for line in audit.stdout.splitlines():
        print(f"audit: {line}")
    is_done = open_money == 0 and settled_s <= args.settle_s
    if not is_done:
        print(f"NOT DONE in {args.settle_s:g} s: {open_money} rides' money is under way")
    if audit.returncode != 0:
        print(f"AUDIT FAILED {audit.stderr.strip()}")
    for why in invalid:
        print(f"NOT VALID: {why}")
    if invalid:
        return 2
    good = not behind_all and is_done and audit.returncode == 0
    print(f"{args.rides_per_second:g} rides/s: " + ("valid, and every service keeps up" if good else "valid, and the services do NOT keep up"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
