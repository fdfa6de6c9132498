"""The same migrations and functions on Citus, distributed by user_id as docs/data-model.md says.

CITUS_URL names a database on a coordinator, with the extension and its workers; without it these tests are skipped.
"""

import os
import re
from collections.abc import Callable
from uuid import uuid4

import pytest
import requests

from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from support.metrics import current
from support.processes import ROOT, Server, query

URL = os.environ.get("CITUS_URL", "")
DISTRIBUTED = "SELECT count(*) FROM citus_tables WHERE table_name = 'metrics'::regclass"

# Neither pip nor Debian has Citus: whoever runs a cluster can check it, nobody else has to build one.
pytestmark = pytest.mark.skipif(not URL, reason="CITUS_URL is not set")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """The schema, and the statements of the document that distribute it."""
    migrations.migrate(read_database({"DATABASE_URL": URL}))
    if query(URL, DISTRIBUTED) == [[0]]:
        text = (ROOT / "docs/data-model.md").read_text()
        for statement in re.findall(r"^SELECT (?:create|truncate)_.*;$", text, re.MULTILINE):
            query(URL, statement)
    assert query(URL, DISTRIBUTED) == [[1]]


@pytest.fixture
def user() -> str:
    user_id = str(uuid4())
    query(URL, "SELECT register_users(CAST(:batch AS json))", batch=f'[{{"user_id": "{user_id}", "name": "Greg"}}]')
    return user_id


def test_single_metrics_are_stored_once_and_faults_are_reported(user: str, serve: Callable[..., Server]) -> None:
    server = serve("ingest", URL)
    sent = current(user, metric_id=str(uuid4()))
    answers = [requests.post(server.url, json=sent, timeout=30) for _ in range(2)]
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true"]
    for change, code in (
        ({"value": 2}, "metric_conflict"),
        ({"metric_id": str(uuid4()), "user_id": str(uuid4())}, "unknown_user"),
        ({"metric_id": str(uuid4()), "metric_type": "nothing"}, "unknown_metric_type"),
        ({"metric_id": str(uuid4()), "value": -1}, "value_out_of_range"),
    ):
        answer = requests.post(server.url, json=sent | change, timeout=30)
        assert answer.json()["code"] == code
    assert query(URL, "SELECT value FROM metrics WHERE user_id = :u", u=user) == [[1.0]]


@pytest.mark.parametrize("strict", [False, True])
def test_batches_over_many_shards_are_accounted_for(serve: Callable[..., Server], strict: bool) -> None:
    server = serve("ingest_batch", URL)
    users = [str(uuid4()) for _ in range(20)]
    registered = ",".join(f'{{"user_id": "{user}", "name": "Greg"}}' for user in users)
    query(URL, "SELECT register_users(CAST(:batch AS json))", batch=f"[{registered}]")
    batch = [current(users[n % 20], value=n, metric_id=str(uuid4())) for n in range(1000)]
    headers = {"Prefer": "handling=strict"} if strict else {}
    for stored, duplicates in ((1000, 0), (0, 1000)):
        reply = requests.post(server.url, json=batch, headers=headers, timeout=60).json()
        assert (reply["stored"], reply["duplicates"], reply["rejected"]) == (stored, duplicates, 0)
    wrong = [current(users[0], metric_id=str(uuid4())), current(users[1], value=-1), batch[0]]
    reply = requests.post(server.url, json=wrong, headers=headers, timeout=60).json()
    assert (reply["stored"], reply["duplicates"], reply["rejected"]) == ((0, 0, 1) if strict else (1, 1, 1))
    counted = query(URL, "SELECT count(*) FROM metrics WHERE user_id = ANY (CAST(:us AS uuid[]))", us=users)
    assert counted == [[1000 if strict else 1001]]


def test_months_are_made_ahead() -> None:
    ahead = 1 + query(URL, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'metrics'::regclass")[0][0]
    made = query(URL, "SELECT create_metrics_partitions(CAST(:n AS integer))", n=ahead)[0][0]
    assert made >= 1
    ((distributed,),) = query(URL, "SELECT count(*) FROM citus_tables WHERE table_name::text LIKE 'metrics_p%'")
    ((partitions,),) = query(URL, "SELECT count(*) FROM pg_class WHERE relname LIKE 'metrics_p2%' AND relkind = 'r'")
    assert distributed == partitions


def test_summaries_miss_nothing(user: str, serve: Callable[..., Server]) -> None:
    """Though a worker's transaction ids are far behind the coordinator's."""
    for _ in range(30):
        query(URL, "SELECT pg_current_xact_id()")
    server = serve("ingest", URL)
    for number in range(1, 4):
        assert requests.post(server.url, json=current(user, value=number), timeout=30).ok
        query(URL, "SELECT refresh_summaries()")
        totals = query(URL, "SELECT sum(metric_count) FROM session_summary WHERE user_id = :u", u=user)
        assert totals == [[number]]
