"""What a number of metrics a second takes: processes, cores, workers, connections, WAL and disk (docs/scaling.md).

Computed from the costs that `python -m benchmarks.citus` has measured. `--check` compares its own prediction for the
machine of that measurement with the rates measured there.
"""

import argparse
import json
from math import ceil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks/results/citus.json"
Costs = dict[str, float]


def predicted_rate(costs: Costs, cores: int, backends: int) -> float:
    """The most metrics a second with one function process, everything on `cores`, and the load generator there, too.

    The process has one core at most. `backends` connections work at a time, each on one core.
    """
    database_us = sum(costs.get(f"{kind}_us", 0) for kind in ("plain", "coordinator", "workers"))
    everything_us = costs["load_us"] + costs["function_us"] + database_us
    return 1e6 / max(costs["function_us"], database_us / backends, everything_us / cores)


def plan(loads: dict[str, Any], rate: float, load: str, machine: int, busy: float, lanes: int) -> dict[str, Any]:
    """What `rate` metrics a second take, when no core is busy for more than the share `busy`.

    `machine` is the number of cores of one database machine, `lanes` is WRITE_LANES.
    """
    plain, citus = loads[load]["plain"], loads[load]["citus"]

    def cores(cost_us: float) -> float:
        return rate * cost_us / 1e6 / busy

    found: dict[str, Any] = {
        "WAL, MB/s": rate * plain["wal_bytes"] / 1e6,
        "disk, GB a month": rate * plain["disk_bytes"] * 86_400 * 30 / 1e9,
    }
    if cores(plain["plain_us"]) <= machine:
        processes = ceil(cores(plain["function_us"]))
        return {
            "function processes": processes,
            "database": f"one PostgreSQL, {ceil(cores(plain['plain_us']))} cores",
            "connections": processes * lanes,
            **found,
        }
    processes = ceil(cores(citus["function_us"]))
    workers = max(2, ceil(cores(citus["workers_us"]) / machine))
    relays = ceil(cores(citus["coordinator_us"]) / machine)
    return {
        "function processes": processes,
        "database": f"{workers} workers of {machine} cores, coordinator {ceil(cores(citus['coordinator_us']))} cores"
        + (f", which is {relays} machines" if relays > 1 else ""),
        "connections": processes * (lanes + workers * ceil(lanes / 2)),
        **found,
    }


def check(measured: dict[str, Any]) -> list[tuple[str, float, float]]:
    """For each measured point its name, the predicted rate and the measured one."""
    points = []
    for load, databases in measured["loads"].items():
        for name, costs in databases.items():
            backends = 2  # WRITE_LANES on one PostgreSQL; one for each of two workers
            predicted = predicted_rate(costs, measured["cores"], backends)
            points.append((f"{load}, {name}", predicted, costs["metrics_per_s"]))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    rates = [100, 1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("rates", type=float, nargs="*", default=rates, help="metrics a second (%(default)s)")
    parser.add_argument("--load", choices=("singles", "batches"), default="batches", help="(%(default)s)")
    parser.add_argument("--machine", type=int, default=16, help="cores of a database machine (%(default)s)")
    parser.add_argument("--busy", type=float, default=0.5, help="the share of a core to use (%(default)s)")
    parser.add_argument("--lanes", type=int, default=2, help="WRITE_LANES (%(default)s)")
    parser.add_argument("--measured", type=Path, default=MEASURED, metavar="JSON", help="(%(default)s)")
    parser.add_argument("--check", action="store_true", help="compare predictions with what was measured")
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text())
    if options.check:
        for name, predicted, rate in check(measured):
            print(f"{name}: predicted {predicted:,.0f}/s, measured {rate:,.0f}/s, {rate / predicted:.2f} of it")
        return
    for rate in options.rates:
        found = plan(measured["loads"], rate, options.load, options.machine, options.busy, options.lanes)
        shown = (
            f"{name} {value:,.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
        )
        print(f"{rate:,.0f} metrics/s in {options.load}: {'; '.join(shown)}")


if __name__ == "__main__":
    main()
