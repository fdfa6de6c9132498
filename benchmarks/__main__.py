"""`make bench`: this product and what people would pick instead, side by side. docs/benchmarks.md explains it."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chart import draw
from benchmarks.database import Postgres
from benchmarks.direct import COPY_ROWS, copy, pgbench
from benchmarks.loads import DIRECT, LOADS, SINGLE, START, Load
from benchmarks.report import machine, panels, render
from benchmarks.servers import ROOT, SERVERS, check_validation, cpu_times, start

BODIES = 64  # of batches of 1,000, in load.lua
GROWN_BYTES, SPARE_BYTES = 320, 25e9  # a stored metric with its keys and session; WAL, and the other databases
Run = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of measuring in each run (%(default)s)")
    parser.add_argument("--warmup", type=float, default=2, help="seconds of load before it (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="A B A B …: how often each is measured (%(default)s)")
    names = ", ".join((*SERVERS, *DIRECT))
    parser.add_argument("--only", type=_list, help=f"of {names}; and NAME-wN, with N processes, where listed")
    parser.add_argument("--workloads", type=_list, default=[*LOADS, "start"], help="of %(default)s")
    parser.add_argument("--growth", type=_list, nargs="?", const=["0", "1", "5", "20"], default=[], metavar="MILLIONS",
                        help="also measure with so many million metrics stored already (0,1,5,20)")  # fmt: skip
    parser.add_argument("--users", type=int, default=1000, help="registered users (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="(benchmarks/results/<time>.json)")
    parser.add_argument("--report", type=Path, metavar="JSON", help="only print the tables of an earlier run")
    parser.add_argument("--chart", type=Path, metavar="SVG", help="with --report: also draw the chart of that run")
    options = parser.parse_args()
    known = {*START, *(name for load in LOADS.values() for name in load.servers)}
    unknown = {*(options.only or ())} - known | {*options.workloads} - {*LOADS, "start"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _list(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


class Benchmark:
    """The runs, in order, and what they gave."""

    def __init__(self, options: argparse.Namespace, postgres: Postgres) -> None:
        self.options = options
        self.postgres = postgres
        self.runs: list[Run] = []
        self.skipped: dict[str, str] = {}
        self.users = postgres.directory / "users.txt"
        self.users.write_text("\n".join(postgres.user_ids) + "\n")
        self.copy_files: list[Path] = []

    def run(self) -> None:
        for workload in self.options.workloads:
            if workload == "start":
                self._rounds(workload, {name: partial(self._start, name) for name in self._chosen(START)}, times=3)
            else:
                load = LOADS[workload]
                self._rounds(workload, {name: self._measure(name, load) for name in self._chosen(load.servers)})
        if self.options.growth:
            self._growth()

    def _measure(self, name: str, load: Load) -> Callable[[], Run]:
        """What measures this one once."""
        if name == "pgbench":
            return partial(pgbench, self.postgres, load.connections, self.options.warmup, self.options.seconds)
        if name in DIRECT:
            if not self.copy_files:
                files = max(2, round(self.options.seconds * 80_000 / COPY_ROWS))
                self.copy_files = self.postgres.write_copy_files(files, COPY_ROWS)
            return partial(copy, self.postgres, self.copy_files, 2 if name == "copy-2" else 1)
        return partial(self._load, name, load)

    def _growth(self) -> None:
        databases = {}
        for millions in map(float, self.options.growth):
            needed = millions * 1e6 * GROWN_BYTES
            if shutil.disk_usage(ROOT / ".local").free < needed + SPARE_BYTES:
                self.skipped[f"{millions:g} million stored"] = f"the disk has less than {needed / 1e9:.0f} GB to spare"
                continue
            begun = time.perf_counter()
            databases[f"ours, {millions:g} million stored"] = self.postgres.grow(millions)
            print(f"{millions:g} million metrics made in {time.perf_counter() - begun:.0f} s", flush=True)
        for workload in ("single", "batch"):
            if workload in self.options.workloads and self._chosen(("ours",)):
                measures = {
                    title: partial(self._load, "ours", LOADS[workload], database)
                    for title, database in databases.items()
                }
                self._rounds(f"growth-{workload}", measures)

    def _chosen(self, candidates: tuple[str, ...]) -> list[str]:
        """Those that were asked for and can run here."""
        chosen = []
        for name in candidates:
            base = name.partition("-w")[0]
            if self.options.only and name not in self.options.only:
                continue
            missing = SERVERS[base].missing() if base in SERVERS else None
            if missing:
                self.skipped[name] = missing
            else:
                chosen.append(name)
        return chosen

    def _rounds(self, workload: str, entries: Mapping[str, Callable[[], Run]], times: int = 1) -> None:
        for number in range(self.options.rounds * times):
            for name, measure in entries.items():
                run = {"workload": workload, "name": name, "round": number + 1, **measure()}
                self.runs.append(run)
                shown = " ".join(f"{k}={v:,.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in run.items())
                print(shown, flush=True)

    def _start(self, name: str) -> Run:
        with start(name, SINGLE, self.postgres) as process:
            return {"start_ms": process.start_ms}

    def _load(self, name: str, load: Load, database: str | None = None) -> Run:
        server = SERVERS[name.partition("-w")[0]]
        database = database or server.database
        if database:
            self.postgres.clear(database)
        with start(name, load.function, self.postgres, database) as process:
            if database:
                check_validation(process, self.postgres)
            since = time.time()
            send = partial(self._wrk, load, process.port, process.path, since=int(since))
            warm = send(self.options.warmup)
            if load.retried and database:
                while self.postgres.count(database, since) < BODIES * load.size:
                    warm = send(1)
                    assert not warm["refused"], f"{name} refused what it was sent again"
            before = cpu_times(process.pid, self.postgres)
            result = send(self.options.seconds)
            cpu = [after - start for start, after in zip(before, cpu_times(process.pid, self.postgres), strict=True)]
        size = load.size or 1
        metrics = (result["requests"] - result["refused"]) * size
        server_us, postgres_us, load_us = (1e6 * seconds / max(metrics, 1) for seconds in cpu[:3])
        run = {
            "requests_per_s": result["requests"] / result["seconds"],
            "rows_per_s": metrics / result["seconds"] if database else None,
            "p50_ms": result["p50_ms"],
            "p99_ms": result["p99_ms"],
            "server_us": server_us,
            "postgres_us": postgres_us if database else None,
            "cpu_us": server_us + postgres_us if database else None,
            "load_us": load_us,
            "others": max(0.0, cpu[3] - sum(cpu[:3])) / result["seconds"],
            "memory_mib": process.memory / 2**20,
            "connections": process.connections,
            "errors": result["refused"] + result["lost"] + warm["refused"] + warm["lost"],
        }
        if database:
            promised = metrics + (warm["requests"] - warm["refused"]) * size
            stored = self.postgres.count(database, since)
            # wrk disconnects at the end: what was in flight then may be stored without its reply having been counted.
            most = promised + 2 * load.connections * size + run["errors"] * size
            if load.retried:
                promised = most = BODIES * size
            assert promised <= stored <= most, f"{name}: {promised} promised, {stored} stored"
            run |= {"promised": promised, "stored": stored}
        return run

    def _wrk(self, load: Load, port: int, path: str, seconds: float, since: int) -> Run:
        again = [str(since)] if load.retried else []
        duration = f"{max(1, round(seconds))}s"
        output = subprocess.run(
            ["wrk", "--threads", "1", "--connections", str(load.connections), "--duration", duration,
             "--timeout", "30s", "--script", "benchmarks/load.lua",
             f"http://127.0.0.1:{port}", "--", self.users, path, str(load.size), *again],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return dict(json.loads(output.splitlines()[-1]))


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    options = arguments()
    if options.report:
        document = json.loads(options.report.read_text())
        print(render(document))
        if options.chart:
            options.chart.write_text(draw(panels(document)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    if shutil.which("wrk") is None:
        print("wrk, the load generator, is not installed (Debian, Ubuntu: apt install wrk; macOS: brew install wrk)."
              " Only the time to start is measured.")  # fmt: skip
        options.workloads = [workload for workload in options.workloads if workload == "start"]
        options.growth = []
    begun = time.time()
    with Postgres(ROOT / ".local/bench-data", options.users) as postgres:
        benchmark = Benchmark(options, postgres)
        try:
            benchmark.run()
        finally:
            document = {
                "when": datetime.fromtimestamp(begun, UTC).isoformat(timespec="seconds"),
                "minutes": round((time.time() - begun) / 60, 1),
                "machine": machine(postgres),
                "options": {name: getattr(options, name) for name in ("seconds", "warmup", "rounds", "users")},
                "skipped": benchmark.skipped,
                "runs": [{key: _rounded(value) for key, value in run.items()} for run in benchmark.runs],
            }
            out = options.out or ROOT / f"benchmarks/results/{datetime.fromtimestamp(begun, UTC):%Y-%m-%d-%H%M}.json"
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document).replace('{"workload"', '\n{"workload"') + "\n")
            print(f"\n{render(document)}\n\nWritten to {out}")


if __name__ == "__main__":
    main()
