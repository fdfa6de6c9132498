"""Batches in numbers: at once, overlapping, and large."""

import gzip
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

import psutil
import pytest
import requests

from support.memory import needs_proc, peak_bytes
from support.processes import Postgres, Stack, function, query

pytestmark = pytest.mark.slow
OVERLAP_S = float(os.environ.get("OVERLAP_S", "4"))
MOST_MEMORY = 200_000_000  # bytes


def events(user_id: str, count: int) -> list[dict[str, Any]]:
    """Metrics of one user, a second apart."""
    return [
        {
            "user_id": user_id,
            "metric_type": "talked_time",
            "value": number % 100 + 0.25,
            "timestamp": f"2024-08-08T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z",
            "metric_id": str(uuid4()),
            "session_id": str(uuid4()) if number % 100 == 0 else user_id,
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("shuffled", [False, True])
def test_thousand_ten_times_at_once_are_a_thousand(stack: Stack, shuffled: bool) -> None:
    user_id = stack.user()
    sent = events(user_id, 1000)
    orders = [random.sample(sent, 1000) if shuffled else sent for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(stack.send_batch, orders))
    assert {answer.status_code for answer in answers} == {200}
    reports = [answer.json() for answer in answers]
    assert (sum(one["stored"] for one in reports), sum(one["duplicates"] for one in reports)) == (1000, 9000)
    assert {str(row[2]) for row in stack.stored(user_id)} == {one["metric_id"] for one in sent}
    assert len(stack.stored(user_id)) == 1000


def test_overlapping_shuffled_batches_of_two_clients(stack: Stack) -> None:
    """No deadlock reaches anyone, no row is lost or doubled, and each row is somebody's stored one."""
    users = [stack.user() for _ in range(5)]
    templates = [event for user_id in users for event in events(user_id, 400)]
    before = deadlocks(stack)
    start = time.monotonic()

    def client(seed: int) -> tuple[int, set[str]]:
        chooser, stored, sent = random.Random(seed), 0, set()
        with requests.Session() as session:
            while (passed := time.monotonic() - start) < OVERLAP_S:
                # Both send of the same 2000 metrics, and every quarter of a second of others: some are always new.
                batch = [
                    templates[number] | {"metric_id": str(uuid5(NAMESPACE_OID, f"{int(4 * passed)} {number}"))}
                    for number in chooser.sample(range(2000), 300)
                ]
                headers = {"Prefer": "handling=strict"} if chooser.random() < 0.3 else {}
                answer = session.post(stack.ingest_batch.url, json=batch, headers=headers, timeout=30)
                assert answer.status_code == 200, answer.text
                report = answer.json()
                assert report["stored"] + report["duplicates"] == 300
                stored += report["stored"]
                sent |= {event["metric_id"] for event in batch}
        return stored, sent

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(client, (1, 2)))
    rows = [str(row[2]) for user_id in users for row in stack.stored(user_id)]
    assert len(rows) == len(set(rows)) == sum(stored for stored, _ in results)
    assert set(rows) == results[0][1] | results[1][1]
    assert deadlocks(stack) == before


def deadlocks(stack: Stack) -> int:
    """How many the database has counted."""
    ((count,),) = stack.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(count)


@needs_proc
def test_ten_thousand_plain_and_packed_within_200_mb(postgres: Postgres) -> None:
    """Fifty requests: twenty-five plain and twenty-five packed, each of them new metrics by its own key."""
    url = postgres.clone()
    user_id = str(uuid4())
    query(url, "INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=user_id)
    sent = events(user_id, 10_000)
    for event in sent:
        del event["metric_id"]
    plain = json.dumps(sent, indent=0).encode()
    assert len(plain) > 1_900_000
    packed = gzip.compress(plain, 1)
    with function("ingest_batch", url, LOG_LEVEL="WARNING") as server, requests.Session() as session:
        for number in range(50):
            body, headers = (packed, {"Content-Encoding": "gzip"}) if number % 2 else (plain, {})
            answer = session.post(
                server.url, data=body, headers={"Idempotency-Key": f"load-{number}", **headers}, timeout=60
            )
            assert (answer.status_code, answer.json()["stored"]) == (200, 10_000), answer.text[:500]
        process = psutil.Process(server.process.pid)
        peaks = [peak_bytes(one.pid) for one in (process, *process.children(recursive=True))]
    assert query(url, "SELECT count(*) FROM metrics") == [[500_000]]
    print(f"peak memory: {max(peaks) // 1_000_000} MB")  # noqa: T201  # a figure worth seeing
    assert max(peaks) < MOST_MEMORY
