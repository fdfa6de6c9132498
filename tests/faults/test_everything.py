"""Everything at once, at random: ingestion, late data, maintenance, refreshes, erasures, exports, dumps, kills.

What was acknowledged is the model; what the database has, and each export that succeeds, is compared with it. The seed
is printed; EVERYTHING_S is how long it runs.
"""

import json
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from metrics_ingest.local.postgres import utils
from support.metrics import register
from support.mortal import Mortal
from support.processes import BIN, Server, query

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("EVERYTHING_S", "60"))
SENDERS = 4
MONTHS = [f"{year}-{month:02}" for year in (2018, 2019) for month in range(1, 13)]
METRIC_ROW = re.compile(r"^[-0-9a-f]{36}\t[^\t]+\t([-0-9a-f]{36})\t", re.MULTILINE)  # user_id, timestamp, metric_id
ENDINGS = {0, 1, 3}  # done; not done for a reason that is said, as when a lock cannot be had; no database


@dataclass
class World:
    """What was sent, acknowledged and erased, and what went wrong."""

    url: str
    single: Server
    batch: Server
    random: random.Random
    stop: threading.Event = field(default_factory=threading.Event)
    sent: dict[str, str] = field(default_factory=dict)  # user by metric_id
    acknowledged: dict[str, str] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)  # users whose erasure has begun
    wrong: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)  # successful runs by command

    def command(self, *arguments: str) -> int:
        """Run `metrics-ingest` and return its exit code, which must be one that was documented."""
        environment = {**os.environ, "DATABASE_URL": self.url}
        done = subprocess.run([BIN / "metrics-ingest", *arguments], env=environment, capture_output=True, text=True,
                              timeout=300, check=False)  # fmt: skip
        if done.returncode not in ENDINGS or "Traceback" in done.stderr:
            self.wrong.append(f"{arguments}: {done.returncode} {done.stderr[-500:]}")
        if done.returncode == 0:
            self.done[arguments[0]] = self.done.get(arguments[0], 0) + 1
        return done.returncode

    def send(self, user: str) -> None:
        """Send metrics of a user, each until it is acknowledged."""
        session = requests.Session()
        while not self.stop.is_set():
            metrics = [self.metric(user) for _ in range(self.random.choice((1, 1, 1, 20)))]
            self.sent |= {metric["metric_id"]: user for metric in metrics}
            server, path = (self.single, "ingest") if len(metrics) == 1 else (self.batch, "ingest_batch")
            until = time.monotonic() + 60
            while time.monotonic() < until:
                body = metrics[0] if len(metrics) == 1 else metrics
                answer = session.post(f"{server.url}/{path}/", json=body, timeout=30)
                if answer.status_code == 200:
                    self.acknowledged |= {metric["metric_id"]: user for metric in metrics}
                    break
                if answer.status_code != 503:
                    self.wrong.append(f"{answer.status_code} {answer.text}")
                    return
                time.sleep(0.1)
            else:
                self.wrong.append(f"{len(metrics)} metrics were not acknowledged within a minute")

    def metric(self, user: str) -> dict[str, Any]:
        """A metric of now, or of a random earlier month."""
        day = f"{self.random.choice(MONTHS)}-{self.random.randint(1, 28):02}T00:00:00Z"
        moment = self.random.choice((day, datetime.now(UTC).isoformat()))
        return {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": moment,
                "metric_id": str(uuid4()), "session_id": user}  # fmt: skip

    def repeat(self, pause_s: float, *arguments: str) -> None:
        """Run a command again and again."""
        while not self.stop.wait(self.random.uniform(0, pause_s)):
            self.command(*arguments)

    def export(self, path: Path) -> None:
        """Export again and again: each that succeeds has all that was acknowledged before, once."""
        while not self.stop.wait(self.random.uniform(0, 2)):
            expected = dict(self.acknowledged)
            if self.command("export", "-o", str(path)) == 0:
                found = [json.loads(line)["metric_id"] for line in path.read_text().splitlines()]
                missing = {metric for metric, user in expected.items() if user not in self.erased} - set(found)
                if missing or len(found) != len(set(found)):
                    self.wrong.append(f"an export misses {len(missing)} of {len(expected)}, has {len(found)}")

    def dump(self, path: Path) -> None:
        """Dump again and again, as `export`."""
        while not self.stop.wait(self.random.uniform(0, 4)):
            expected = dict(self.acknowledged)
            tool = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION] / "pg_dump"
            done = subprocess.run([tool, "--data-only", "--table=metrics*", "-f", path, self.url], capture_output=True,
                                  text=True, timeout=300, check=False)  # fmt: skip
            if done.returncode == 0:
                self.done["dump"] = self.done.get("dump", 0) + 1
                found = METRIC_ROW.findall(path.read_text())
                missing = {metric for metric, user in expected.items() if user not in self.erased} - set(found)
                if missing or len(found) != len(set(found)):
                    self.wrong.append(f"a dump misses {len(missing)} of {len(expected)}, has {len(found)}")

    def forget(self) -> None:
        """Send metrics of a user, then erase it, again and again."""
        while not self.stop.wait(self.random.uniform(0, 3)):
            user = self.register()
            metrics = [self.metric(user) for _ in range(50)]
            self.sent |= {metric["metric_id"]: user for metric in metrics}
            answer = requests.post(f"{self.batch.url}/ingest_batch/", json=metrics, timeout=30)
            if answer.status_code == 200:
                self.acknowledged |= {metric["metric_id"]: user for metric in metrics}
            self.erased.add(user)
            # 1: a transaction that began before is still open, or the user is erased already. Only then is none shown.
            while self.command("user", "forget", user, "--yes") and self.command("user", "show", user) != 1:
                time.sleep(0.5)

    def register(self) -> str:
        """Register a user, when the database answers."""
        while True:
            try:
                return register(self.url)
            except Exception:  # noqa: BLE001  # whatever a database that is being killed answers
                time.sleep(0.2)

    def check(self) -> None:
        """Compare the database with the model, and the summaries with the metrics."""
        rows = query(self.url, "SELECT metric_id::text, user_id::text FROM metrics")
        stored = dict(rows)
        expected = {metric for metric, user in self.acknowledged.items() if user not in self.erased}
        assert len(rows) == len(stored), "metrics are stored twice"
        assert expected - stored.keys() == set(), f"{len(expected - stored.keys())} of {len(expected)} are lost"
        assert stored.keys() <= self.sent.keys()
        assert {user for _, user in rows} & self.erased == set()
        summaries = "SELECT (SELECT sum(metric_count) FROM {}), count(*) FROM metrics"
        for view in ("session_rollup", "user_day_rollup", "type_hour_rollup"):
            ((summed, counted),) = query(self.url, summaries.format(view))
            assert summed == counted, view


def test_everything_at_once_agrees_with_what_was_acknowledged(
    mortal: Mortal, serve: Callable[..., Server], tmp_path: Path
) -> None:
    seed = int(os.environ.get("SEED", str(random.randrange(10**6))))
    url = mortal.clone()
    single, batch = serve("ingest", url, WRITE_TIMEOUT_S="5"), serve("ingest_batch", url, WRITE_TIMEOUT_S="5")
    world = World(url, single, batch, random.Random(seed))
    users = [world.register() for _ in range(SENDERS)]
    with ThreadPoolExecutor(20) as pool:
        tasks = [pool.submit(world.send, user) for user in users]
        tasks += [pool.submit(world.repeat, 2, "partitions", "maintain", "--yes") for _ in range(2)]
        tasks += [pool.submit(world.repeat, 2, "summaries", "refresh"), pool.submit(world.forget)]
        tasks += [pool.submit(world.export, tmp_path / "export"), pool.submit(world.dump, tmp_path / "dump")]
        until, kills = time.monotonic() + SECONDS, 0
        while time.monotonic() < until and not world.wrong and not any(task.done() for task in tasks):
            time.sleep(world.random.uniform(5, 15))
            mortal.kill()
            time.sleep(world.random.uniform(0, 1))
            mortal.start()
            kills += 1
        time.sleep(3)
        world.stop.set()
        for task in tasks:
            task.result()
    assert world.wrong == [], (seed, world.wrong[:3])
    assert world.command("partitions", "maintain", "--yes") == 0
    assert world.command("summaries", "refresh") == 0
    world.check()
    assert query(url, "SELECT count(*) FROM metrics_default") == [[0]]
    assert world.done.keys() >= {"partitions", "summaries", "export", "dump"}, world.done
    print(f"seed {seed}: {len(world.acknowledged)} metrics acknowledged, {kills} kills, {world.done}")  # noqa: T201  # figures
