#!/usr/bin/env python3
"""Cabrank's exact rounds beside scipy's and OR-tools' assignment, on one instance in one run.

    python3 benches/compare_assignment.py [--rides 10000] [--cars 10000] [--candidates 16] [--seed 1]

A city of 39 by 34 km with five hot spots; each ride may have its nearest cars. As many rides as possible are to be
served, at the least total cost. The others know only full assignments, so each ride gets a dummy car of its own at a cost
above all that can be saved elsewhere (and OR-tools, which wants as many rides as cars, dummy rides as well). All must
find the same: that is checked. Needs cargo; scipy and ortools (`pip install scipy ortools`) are left out where they are
not installed. Times are the least of a few solves, from the problem in the solver's own form to its answer.
"""

import argparse
import math
import random
import subprocess
import sys
import tempfile
import time


def spot(rng):
    if rng.random() < 0.4:
        return rng.uniform(0, 39e3), rng.uniform(0, 34e3)
    x, y = rng.choice([(9e3, 8e3), (12e3, 20e3), (20e3, 17e3), (28e3, 9e3), (31e3, 27e3)])
    scatter = lambda: sum(rng.uniform(-1500, 1500) for _ in range(4))
    return x + scatter(), y + scatter()


def city(rides, cars, candidates, seed):
    """Per ride a list of (car, ms), found by looking at ever wider rings of a grid."""
    rng = random.Random(seed)
    size = 1000.0
    at = [spot(rng) for _ in range(cars)]
    grid = {}
    for car, (x, y) in enumerate(at):
        grid.setdefault((int(x // size), int(y // size)), []).append(car)
    rows = []
    for _ in range(rides):
        x, y = spot(rng)
        i, j = int(x // size), int(y // size)
        ring = 1
        while True:
            square = [grid.get((i + a, j + b), ()) for a in range(-ring, ring + 1) for b in range(-ring, ring + 1)]
            near = sorted((math.hypot(at[c][0] - x, at[c][1] - y), c) for cell in square for c in cell)
            # Whoever is outside the square is at least `ring` cells away.
            if len(near) >= candidates and near[candidates - 1][0] <= ring * size or ring > 60:
                break
            ring += 1
        rows.append([(c, int(d / 8 * 1000)) for d, c in near[:candidates]])
    return rows


def least(times, solve):
    best, answer = math.inf, None
    for _ in range(times):
        began = time.perf_counter()
        answer = solve()
        best = min(best, time.perf_counter() - began)
    return best * 1000, answer


def cabrank(rows, cars):
    with tempfile.NamedTemporaryFile("w", suffix=".round") as file:
        file.write(f"{len(rows)} {cars}\n")
        file.writelines(" ".join(f"{car}:{ms}" for car, ms in row) + "\n" for row in rows)
        file.flush()
        run = ["cargo", "run", "--release", "-q", "-p", "cabrank-engine", "--example", "solve_round", "--", file.name]
        served, cost, ms = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    return float(ms), (int(served), int(cost))


def out_cost(rows):
    """What a dummy costs: more than all that can be saved by leaving one more ride unserved."""
    return (max((ms for row in rows for _, ms in row), default=0) + 1) * (len(rows) + 1)


def scipy(rows, cars):
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    dummy = out_cost(rows)
    # Nothing may cost 0, which means "no edge" there.
    ride = [i for i, row in enumerate(rows) for _ in row] + list(range(len(rows)))
    car = [c for row in rows for c, _ in row] + [cars + i for i in range(len(rows))]
    cost = [ms + 1 for row in rows for _, ms in row] + [dummy] * len(rows)
    table = csr_array((np.array(cost, dtype=np.float64), (ride, car)), shape=(len(rows), cars + len(rows)))
    ms, (at, to) = least(3, lambda: min_weight_full_bipartite_matching(table))
    known = [dict(row) for row in rows]
    pairs = [known[i][c] for i, c in zip(at, to) if c < cars]
    return ms, (len(pairs), sum(pairs))


def ortools(rows, cars):
    import numpy as np
    from ortools.graph.python import linear_sum_assignment

    n, dummy = len(rows), out_cost(rows)
    left, right, cost = [], [], []
    for i, row in enumerate(rows):
        for c, ms in row:
            # The ride and the car; or neither: then their dummies are left for each other.
            left += [i, n + c]
            right += [c, cars + i]
            cost += [ms, 0]
        left.append(i), right.append(cars + i), cost.append(dummy)
    for c in range(cars):
        left.append(n + c), right.append(c), cost.append(0)
    left, right, cost = (np.array(x, dtype=t) for x, t in ((left, np.int32), (right, np.int32), (cost, np.int64)))

    def solve():
        problem = linear_sum_assignment.SimpleLinearSumAssignment()
        problem.add_arcs_with_cost(left, right, cost)
        status = problem.solve()
        assert status == problem.OPTIMAL, status
        return [problem.right_mate(i) for i in range(n)]

    ms, mates = least(3, solve)
    known = [dict(row) for row in rows]
    pairs = [known[i][c] for i, c in enumerate(mates) if c < cars]
    return ms, (len(pairs), sum(pairs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rides", type=int, default=10_000)
    parser.add_argument("--cars", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows = city(args.rides, args.cars, args.candidates, args.seed)
    ours_ms, ours = cabrank(rows, args.cars)
    print(f"{args.rides} rides, {args.cars} cars, {args.candidates} candidates each, seed {args.seed}")
    print(f"{'cabrank':<10} {ours_ms:9.2f} ms   served {ours[0]}, cost {ours[1]} ms")
    differs = False
    for solver in (scipy, ortools):
        try:
            ms, found = solver(rows, args.cars)
        except ImportError as why:
            print(f"{solver.__name__:<10} not installed ({why})")
            continue
        print(f"{solver.__name__:<10} {ms:9.2f} ms   {ms / ours_ms:.1f} times cabrank's")
        if found != ours:
            differs = True
            print(f"  it found another result: served {found[0]}, cost {found[1]} ms")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
