#!/usr/bin/env python3
"""Is `cabrank simulate` true to the real thing? The same hours through `cabrank replay --drive dispatched`
(gateway, sockets, phones, log) and through `cabrank simulate`; served share and mean wait side by side.

    benches/simulate_against_replay.py --cabrank target/release/cabrank --trips TRIPS --gps GPS --hours 5

Each hour takes a minute for the replay (60 times faster than life) and a second for the simulation. On a busy machine
the replay's waits grow: a second of wall time is a minute of the day. Exit code 1 if the median over the hours of the
difference is above one point served or 5 % of the mean wait.
"""
import argparse, csv, gzip, json, os, statistics, subprocess, sys, tempfile


def first_time(trips):
    with (gzip.open if trips.endswith(".gz") else open)(trips, "rt") as rows:
        return int(next(csv.DictReader(rows))["time"])


def run(command, env, report):
    done = subprocess.run(command + ["--report", report], env=env, capture_output=True, text=True)
    if not os.path.exists(report):
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    with open(report) as file:
        return json.load(file), done.returncode


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--cabrank", default="target/release/cabrank")
    args.add_argument("--trips", required=True)
    args.add_argument("--gps", required=True)
    args.add_argument("--hours", type=int, default=5)
    args.add_argument("--policy", default="batched", help="first_come, greedy, batched, rematch")
    args.add_argument("--speed", default="60")
    args.add_argument("--fleet-every", default="1")
    args = args.parse_args()

    begins = first_time(args.trips) // 3600 * 3600
    env = dict(os.environ, CABRANK_NODE__POLICY=args.policy)
    files = ["--trips", args.trips, "--gps", args.gps, "--fleet-every", args.fleet_every]
    # As the replay's phones are: 7 m/s, a ping a minute; patience, radius and rounds as configured.
    habits = ["--speed-kmh", "25.2", "--patience-s", "0", "--pickup-max-s", "0", "--ping-every-s", "60", "--no-audit"]
    points, percents = [], []
    print("hour        rides  served %: replay simulate  mean wait s: replay simulate  swaps")
    for hour in range(args.hours):
        window = ["--from", str(begins + hour * 3600), "--to", str(begins + (hour + 1) * 3600)]
        with tempfile.TemporaryDirectory() as scratch:
            real, code = run(
                [args.cabrank, "replay", "--drive", "dispatched", "--speed", args.speed] + files + window,
                env, scratch + "/replay.json")
            model, _ = run(
                [args.cabrank, "simulate", "--policy", args.policy + "@0"] + files + window + habits,
                env, scratch + "/simulate.json")
        share = 100 * real["wait_s"]["count"] / max(real["rides"]["requested"], 1)
        wait, waits = real["wait_s"]["mean"], model["wait_s"]["mean"]
        points.append(abs(share - model["served_percent"]))
        percents.append(abs(waits / wait - 1) * 100 if wait else 0)
        print(f"{begins + hour * 3600}  {real['rides']['requested']:5}  {share:16.2f} {model['served_percent']:8.2f}"
              f"  {wait:19.1f} {waits:8.1f}  {model['swaps_a_ride']:5.2f}" + ("" if code == 0 else "  (replay not valid)"))
    served, waited = statistics.median(points), statistics.median(percents)
    print(f"median difference: {served:.2f} points served (at most 1), {waited:.1f} % of the mean wait (at most 5)")
    sys.exit(0 if served <= 1 and waited <= 5 else 1)


if __name__ == "__main__":
    main()
