"""References without a server: COPY by psql, and INSERT by pgbench, straight into our own table with all its keys."""

import os
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.database import COLUMNS, KINDS, USER_ID, Postgres
from benchmarks.servers import cpu_seconds, cpu_times

COPY_ROWS = 10_000  # in a file, and so in a transaction
# One metric of a random user, whose one session is there already. pgbench fills in :number and :kind.
INSERT = rf"""
\set number random(0, :users - 1)
\set kind random(1, 4)
INSERT INTO metrics ({COLUMNS})
SELECT user_id, now(), gen_random_uuid(), md5(user_id::text)::uuid, ({KINDS})[:kind], :kind::integer % 2
FROM (SELECT {USER_ID.format(number=":number")}) AS random (user_id);
"""


def copy(postgres: Postgres, files: list[Path], parallel: int) -> dict[str, Any]:
    """COPY of prepared text by so many psql at once."""
    postgres.clear("ours")
    postgres.add_copy_sessions()
    since = time.time()
    cpu = cpu_seconds(postgres.pid)
    begun = time.perf_counter()
    loaders = []
    for number in range(parallel):
        commands = [rf"--command=\copy metrics ({COLUMNS}) from '{path}'" for path in files[number::parallel]]
        loaders.append(subprocess.Popen(
            [postgres.bin / "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", *commands], env=_environment(postgres)
        ))  # fmt: skip
    failed = sum(loader.wait() for loader in loaders)
    seconds = time.perf_counter() - begun
    rows = COPY_ROWS * len(files)
    stored = postgres.count("ours", since)
    assert not failed, "psql failed"
    assert stored == rows, f"COPY: {rows} sent, {stored} stored"
    return {
        "rows_per_s": rows / seconds,
        "postgres_us": 1e6 * (cpu_seconds(postgres.pid) - cpu) / rows,
        "connections": parallel,
        "errors": 0,
        "stored": stored,
    }


def pgbench(postgres: Postgres, clients: int, warmup: float, seconds: float) -> dict[str, Any]:
    """One metric a transaction by prepared statements, from so many connections. It validates nothing."""
    postgres.clear("ours")
    postgres.add_copy_sessions()
    script = postgres.directory / "pgbench.sql"
    script.write_text(INSERT)
    since = time.time()
    _, warm = _pgbench(postgres, script, clients, warmup)
    before = cpu_times(None, postgres)
    rate, latencies = _pgbench(postgres, script, clients, seconds)
    cpu = [after - start for start, after in zip(before, cpu_times(None, postgres), strict=True)]
    done = len(latencies)
    stored = postgres.count("ours", since)
    assert stored == len(warm) + done, f"pgbench: {len(warm)} + {done} sent, {stored} stored"
    latencies.sort()
    return {
        "requests_per_s": rate,
        "rows_per_s": rate,
        "p50_ms": statistics.median(latencies) / 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] / 1000,
        "postgres_us": 1e6 * cpu[1] / done,
        "load_us": 1e6 * cpu[2] / done,
        "others": max(0.0, cpu[3] - sum(cpu[:3])) / seconds,
        "connections": clients,
        "errors": 0,
        "stored": stored,
    }


def _pgbench(postgres: Postgres, script: Path, clients: int, seconds: float) -> tuple[float, list[int]]:
    """Transactions a second, and the microseconds that each transaction took."""
    prefix = postgres.directory / "pgbench-log"
    output = subprocess.run(
        [postgres.bin / "pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "1",
         "-T", str(max(1, round(seconds))), "-D", f"users={len(postgres.user_ids)}", "-f", script,
         "-l", f"--log-prefix={prefix}"],
        env=_environment(postgres), check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    latencies = []
    for log in postgres.directory.glob(f"{prefix.name}.*"):
        latencies += [int(line.split()[2]) for line in log.read_text().splitlines()]
        log.unlink()
    found = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    assert found, output
    return float(found[1]), latencies


def _environment(postgres: Postgres) -> dict[str, str]:
    return {**os.environ, **postgres.environment("ours")}
