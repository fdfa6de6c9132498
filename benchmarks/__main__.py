"""`make bench`: this product and what people would pick instead, side by side. docs/benchmarks.md explains it."""

import argparse
import json
import os
import resource
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

import psutil

from benchmarks.database import COLUMNS, Postgres
from benchmarks.report import machine, render
from benchmarks.servers import ROOT, SERVERS, check_validation, cpu_seconds, start

COPY_ROWS = 10_000  # in a file, and so in a transaction
SINGLE, BATCH = "ingest", "ingest_batch"
STACKS = ("ours", "fastapi", "fastapi-tx", "flask", "fastify-postgres", "fastify-pg", "sync")
BULK = ("ours", "fastapi", "fastify-postgres")
# name: (function, connections, metrics in a request or 0, servers)
LOADS = {
    "single": (SINGLE, 64, 0, (*STACKS, "empty", "ours-w2", "fastapi-w2", "fastify-postgres-w2")),
    "lone": (SINGLE, 1, 0, (*STACKS, "empty")),
    "batch": (BATCH, 4, 1000, (*BULK, "ours-otlp", "copy", "copy-2", "ours-w2", "fastapi-w2", "fastify-postgres-w2")),
    "crowd": (SINGLE, 1000, 0, (*BULK, "ours-w2")),
}
Run = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of measuring in each run (%(default)s)")
    parser.add_argument("--warmup", type=float, default=2, help="seconds of load before it (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="A B A B …: how often each is measured (%(default)s)")
    names = ", ".join((*SERVERS, "copy", "copy-2"))
    parser.add_argument("--only", type=_list, help=f"of {names}; and NAME-wN, with N processes, where listed")
    parser.add_argument("--workloads", type=_list, default=[*LOADS, "start"], help="of %(default)s")
    parser.add_argument("--growth", type=_list, nargs="?", const=["0", "1", "5", "20"], default=[], metavar="MILLIONS",
                        help="also measure with so many million metrics stored already (0,1,5,20)")  # fmt: skip
    parser.add_argument("--users", type=int, default=1000, help="registered users (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="(benchmarks/results/<time>.json)")
    parser.add_argument("--report", type=Path, metavar="JSON", help="only print the tables of an earlier run")
    options = parser.parse_args()
    known = {*STACKS, "empty", *(name for *_, candidates in LOADS.values() for name in candidates)}
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
                names = self._chosen((*STACKS, "empty", "ours-otlp"))
                self._rounds(workload, {name: partial(self._start, name) for name in names}, times=3)
            else:
                function, connections, size, candidates = LOADS[workload]
                names = self._chosen(candidates)
                if any(name.startswith("copy") for name in names):
                    files = max(2, round(self.options.seconds * 80_000 / COPY_ROWS))
                    self.copy_files = self.postgres.write_copy_files(files, COPY_ROWS)
                self._rounds(workload, {
                    name: partial(self._copy, name) if name.startswith("copy")
                    else partial(self._load, name, function, connections, size)
                    for name in names
                })  # fmt: skip
        if self.options.growth:
            self._growth()

    def _growth(self) -> None:
        databases = {}
        for millions in map(float, self.options.growth):
            begun = time.perf_counter()
            databases[f"ours, {millions:g} million stored"] = self.postgres.grow(millions)
            print(f"{millions:g} million metrics made in {time.perf_counter() - begun:.0f} s", flush=True)
        for workload in ("single", "batch"):
            if workload in self.options.workloads and self._chosen(("ours",)):
                function, connections, size, _ = LOADS[workload]
                measures = {
                    title: partial(self._load, "ours", function, connections, size, database)
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

    def _load(self, name: str, function: str, connections: int, size: int, database: str | None = None) -> Run:
        server = SERVERS[name.partition("-w")[0]]
        database = database or server.database
        if database:
            self.postgres.clear(database)
        with start(name, function, self.postgres, database) as process:
            if database:
                check_validation(process, self.postgres)
            since = time.time()
            warm = self._wrk(self.options.warmup, connections, process.port, process.path, size)
            before = self._cpu(process.pid)
            result = self._wrk(self.options.seconds, connections, process.port, process.path, size)
            cpu = [after - start for start, after in zip(before, self._cpu(process.pid), strict=True)]
        metrics = (result["requests"] - result["refused"]) * (size or 1)
        server_us, postgres_us, load_us = (1e6 * seconds / max(metrics, 1) for seconds in cpu[:3])
        run = {
            "requests_per_s": result["requests"] / result["seconds"],
            "rows_per_s": metrics / result["seconds"] if database else None,
            "p50_ms": result["p50_ms"],
            "p99_ms": result["p99_ms"],
            "server_us": server_us,
            "postgres_us": postgres_us if database else None,
            "load_us": load_us,
            "others": max(0.0, cpu[3] - sum(cpu[:3])) / result["seconds"],
            "memory_mib": process.memory / 2**20,
            "connections": process.connections,
            "errors": result["refused"] + result["lost"] + warm["refused"] + warm["lost"],
        }
        if database:
            promised = metrics + (warm["requests"] - warm["refused"]) * (size or 1)
            stored = self.postgres.count(database, since)
            # wrk hangs up at the end: what was on its way then may be stored without its answer having been counted.
            unanswered = 2 * connections * (size or 1) + run["errors"] * (size or 1)
            assert promised <= stored <= promised + unanswered, f"{name}: {promised} promised, {stored} stored"
            run |= {"promised": promised, "stored": stored}
        return run

    def _cpu(self, pid: int) -> tuple[float, ...]:
        """CPU seconds so far: the server's, PostgreSQL's, the load generator's and the whole machine's."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that have ended: in a run, only wrk
        machine_times = psutil.cpu_times()
        busy = sum(machine_times[:8]) - machine_times.idle - machine_times.iowait
        return cpu_seconds(pid), cpu_seconds(self.postgres.pid), usage.ru_utime + usage.ru_stime, busy

    def _wrk(self, seconds: float, connections: int, port: int, path: str, size: int) -> Run:
        output = subprocess.run(
            ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s",
             "--timeout", "30s", "--script", "benchmarks/load.lua",
             f"http://127.0.0.1:{port}", "--", self.users, path, str(size)],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return dict(json.loads(output.splitlines()[-1]))

    def _copy(self, name: str) -> Run:
        """COPY of ready text by psql into our very table, by one psql or by two at once."""
        self.postgres.clear("ours")
        self.postgres.add_copy_sessions()
        parallel = 2 if name == "copy-2" else 1
        since = time.time()
        cpu = cpu_seconds(self.postgres.pid)
        begun = time.perf_counter()
        loaders = []
        for number in range(parallel):
            files = self.copy_files[number::parallel]
            commands = [rf"--command=\copy metrics ({COLUMNS}) from '{path}'" for path in files]
            loaders.append(subprocess.Popen(
                [self.postgres.bin / "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", *commands],
                env={**os.environ, **self.postgres.environment("ours")},
            ))  # fmt: skip
        failed = sum(loader.wait() for loader in loaders)
        seconds = time.perf_counter() - begun
        rows = COPY_ROWS * len(self.copy_files)
        stored = self.postgres.count("ours", since)
        assert not failed, f"{name}: psql failed"
        assert stored == rows, f"{name}: {rows} sent, {stored} stored"
        return {
            "rows_per_s": rows / seconds,
            "postgres_us": 1e6 * (cpu_seconds(self.postgres.pid) - cpu) / rows,
            "connections": parallel,
            "errors": 0,
            "stored": stored,
        }


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    options = arguments()
    if options.report:
        print(render(json.loads(options.report.read_text())))
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
