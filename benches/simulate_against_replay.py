#!/usr/bin/env python3
"""Is `cabrank simulate` true to the real thing? The same hours through `cabrank replay --drive dispatched`
(gateway, sockets, phones, log) and through `cabrank simulate`; served share and mean wait side by side.

    benches/simulate_against_replay.py --cabrank target/release/cabrank --trips A,B,C,D,E --gps A,B,C,D,E

Cars are seen for twenty minutes longer than riders ask: a cut day ends with every car's last report, and then all would go
home while the last riders still wait. The first day gives its first hour, the second day its second hour, and so on, until there are --hours. At 60 times its
speed an hour takes a minute in the replay and a second in the simulation. There a second of wall time is a minute of
the day: where the machine is busy with other things the replay's waits grow, so choose a lower --speed.
Exit code 1 if the median over the hours of the difference is above one point served or 5 % of the mean wait.
"""
import argparse
import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile

HOUR_S = 3_600
AFTERWARDS_S = 1_200
SERVED_POINTS_MAX = 1.0
WAIT_PERCENT_MAX = 5.0


def first_time(trips):
    with (gzip.open if trips.endswith(".gz") else open)(trips, "rt") as rows:
        return int(next(csv.DictReader(rows))["time"])


def cut(file, begins, ends, to):
    """The rows of a day that lie within this time."""
    with (gzip.open if file.endswith(".gz") else open)(file, "rt") as rows, open(to, "w") as out:
        rows = csv.reader(rows)
        written = csv.writer(out)
        header = next(rows)
        written.writerow(header)
        time = header.index("time")
        written.writerows(row for row in rows if begins <= int(row[time]) < ends)
    return to


def run(command, env, report):
    done = subprocess.run(command + ["--report", report], env=env, capture_output=True, text=True)
    if not os.path.exists(report):
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    with open(report) as file:
        return json.load(file), done.returncode


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--cabrank", default="target/release/cabrank")
    args.add_argument("--trips", required=True, help="one file a day, separated by commas")
    args.add_argument("--gps", required=True, help="of the same days, in the same order")
    args.add_argument("--hours", type=int, default=5)
    args.add_argument("--policy", default="batched", help="first_come, greedy, batched, rematch")
    args.add_argument("--speed", default="60", help="of the replay, times life")
    args.add_argument("--fleet-every", default="1")
    args.add_argument("--seed", default="1")
    args = args.parse_args()

    days = list(zip(args.trips.split(","), args.gps.split(","), strict=True))
    env = dict(os.environ, CABRANK_NODE__POLICY=args.policy)
    # As the replay's phones and its node are: 7 m/s, a ping a minute, eight shards and all rides in one round; patience,
    # radius and rounds as configured.
    habits = ["--speed-kmh", "25.2", "--patience-s", "0", "--pickup-max-s", "0", "--ping-every-s", "60",
              "--shards", "8", "--rounds", "node", "--no-audit"]
    points, percents = [], []
    print("| hour (Unix) | rides | served %, replay | simulate | mean wait s, replay | simulate | difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for hour in range(args.hours):
        trips, gps = days[hour % len(days)]
        begins = first_time(trips) // HOUR_S * HOUR_S + hour * HOUR_S
        with tempfile.TemporaryDirectory() as scratch:
            asked = cut(trips, begins, begins + HOUR_S, scratch + "/trips.csv")
            seen = cut(gps, begins, begins + HOUR_S + AFTERWARDS_S, scratch + "/gps.csv")
            same = ["--trips", asked, "--gps", seen, "--fleet-every", args.fleet_every, "--seed", args.seed]
            real, code = run([args.cabrank, "replay", "--drive", "dispatched", "--speed", args.speed] + same,
                             env, scratch + "/replay.json")
            model, _ = run([args.cabrank, "simulate", "--policy", args.policy + "@0"] + same + habits,
                           env, scratch + "/simulate.json")
        if code != 0:
            sys.exit(f"the replay is not valid: {real['invalid_because']}")
        served = 100 * real["wait_s"]["count"] / max(real["rides"]["requested"], 1)
        wait, modelled = real["wait_s"]["mean"], model["wait_s"]["mean"]
        off = (modelled / wait - 1) * 100 if wait else 0.0
        points.append(abs(served - model["served_percent"]))
        percents.append(abs(off))
        print(f"| {begins} | {real['rides']['requested']} | {served:.2f} | {model['served_percent']:.2f} "
              f"| {wait:.1f} | {modelled:.1f} | {off:+.1f} % |", flush=True)
    served, waited = statistics.median(points), statistics.median(percents)
    print(f"\n{args.policy}: median difference {served:.2f} points served (at most {SERVED_POINTS_MAX:.0f}), "
          f"{waited:.1f} % of the mean wait (at most {WAIT_PERCENT_MAX:.0f})")
    sys.exit(0 if served <= SERVED_POINTS_MAX and waited <= WAIT_PERCENT_MAX else 1)


if __name__ == "__main__":
    main()
