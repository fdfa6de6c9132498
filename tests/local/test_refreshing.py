"""Under `make run` the summaries are refreshed soon after metrics were stored, and only then."""

import time
from functools import partial
from pathlib import Path

import pytest
import requests

from support.console import ingest
from support.emulator import emulator
from support.processes import Postgres, eventually, query

USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
METRIC = {"user_id": USER, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T12:34:56Z"}
REFRESHED = "SELECT refreshed_at FROM summary_state"
COUNT = "SELECT COALESCE(sum(metric_count), 0) FROM type_hour_rollup"


def summarised(url: str, count: int) -> bool:
    return bool(query(url, COUNT)[0][0] == count)


@pytest.mark.parametrize("path", ["/ingest/", "/ingest_batch/"])
def test_new_metrics_are_in_the_summaries_within_two_seconds(postgres: Postgres, path: str) -> None:
    url = postgres.clone()
    with emulator(DATABASE_URL=url) as server:
        requests.post(f"{server.url}/users/", json={"user_id": USER, "name": "Greg"}, timeout=10)
        for number in range(1, 4):
            body = METRIC if path == "/ingest/" else [METRIC]
            assert requests.post(server.url + path, json=body, timeout=10).status_code == 200
            eventually(partial(summarised, url, number), 2)


def test_nothing_is_refreshed_while_nothing_is_stored(postgres: Postgres) -> None:
    url = postgres.clone()
    with emulator(DATABASE_URL=url) as server:
        eventually(lambda: query(url, REFRESHED)[0][0])
        ((before,),) = query(url, REFRESHED)
        requests.post(f"{server.url}/users/", json={"user_id": USER, "name": "Greg"}, timeout=10)
        requests.get(f"{server.url}/ingest/health", timeout=10)
        requests.get(f"{server.url}/dashboard/api/overview", timeout=10)
        time.sleep(2.5)
        assert query(url, REFRESHED)[0][0] == before


def test_what_was_stored_while_no_emulator_ran_is_refreshed_at_the_start(postgres: Postgres) -> None:
    url = postgres.clone()
    query(url, "INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=USER)
    query(url, ingest({"user_id": USER, "timestamp": "2024-08-08T12:34:56Z"}))
    with emulator(DATABASE_URL=url):
        eventually(lambda: summarised(url, 1), 2)


def test_a_refresh_that_fails_is_logged_and_tried_again(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.clone()
    with emulator(DATABASE_URL=url) as server:
        eventually(lambda: query(url, REFRESHED)[0][0])
        requests.post(f"{server.url}/users/", json={"user_id": USER, "name": "Greg"}, timeout=10)
        query(url, "ALTER TABLE summary_state RENAME TO elsewhere")
        assert requests.post(f"{server.url}/ingest/", json=METRIC, timeout=10).status_code == 200
        eventually(lambda: "the summaries cannot be refreshed" in server.log)
        query(url, "ALTER TABLE elsewhere RENAME TO summary_state")
        assert requests.post(f"{server.url}/ingest/", json=METRIC, timeout=10).status_code == 200
        eventually(lambda: summarised(url, 2), 2)
