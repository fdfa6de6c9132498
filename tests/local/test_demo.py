"""`make demo`: two weeks of data through the API of a running emulator."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from metrics_ingest.local.demo import NAMES
from support.emulator import emulator
from support.processes import Postgres, free_port, query


def run(directory: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "metrics_ingest.local.demo"],
        env=environment, cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_demo_fills_the_emulator_and_a_second_run_stores_nothing_twice(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.clone()
    with emulator(tmp_path, DATABASE_URL=url) as server:
        first, second = (run(tmp_path, PORT=str(server.port), DATABASE_URL=url) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    stored = int(re.match(r"([\d,]+) metrics stored", first.stdout)[1].replace(",", ""))  # type: ignore[index]
    assert f"look: {server.url}/dashboard/" in first.stdout
    again, known = re.match(r"([\d,]+) metrics stored, ([\d,]+) were there already", second.stdout).groups()  # type: ignore[union-attr]
    assert int(again.replace(",", "")) < 50  # those whose time came meanwhile
    assert int(known.replace(",", "")) == stored
    ((metrics, users, types, days),) = query(
        url,
        "SELECT count(*), count(DISTINCT user_id), count(DISTINCT metric_type),"
        " extract(day FROM max(timestamp) - min(timestamp)) FROM metrics",
    )
    assert metrics == stored + int(again) > 20_000
    assert users > 0.8 * len(NAMES)
    assert types == 5
    assert days in (13, 14, 15)
    ((codes,),) = query(url, "SELECT count(DISTINCT code) FROM rejected_metrics, unnest(codes) AS code")
    assert codes >= 3


def test_demo_without_an_emulator_says_so(tmp_path: Path) -> None:
    port = free_port()
    done = run(tmp_path, PORT=str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"metrics-ingest: nothing answers at http://127.0.0.1:{port}; start it with `make run`\n"
