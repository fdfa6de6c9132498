"""Metrics are stored on the node of their user, each exactly once, and every one is accounted for."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
import requests

from citus.conftest import Users, by_node
from metrics_ingest.storage.operations import Operation, execute_blocking
from support.console import Console
from support.metrics import current
from support.processes import Server

Serve = Callable[..., Server]


def test_single_metrics_are_stored_once_and_faults_are_reported(cluster: str, console: Console, users: Users,
                                                                serve: Serve) -> None:  # fmt: skip
    server = serve("ingest", cluster)
    (user,) = users(1)
    sent = current(user, metric_id=str(uuid4()))
    answers = [requests.post(server.url, json=sent, timeout=30) for _ in range(3)]
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true", "true"]
    for change, code in (
        ({"value": 2}, "metric_conflict"),
        ({"metric_id": str(uuid4()), "user_id": str(uuid4())}, "unknown_user"),
        ({"metric_id": str(uuid4()), "metric_type": "nothing"}, "unknown_metric_type"),
        ({"metric_id": str(uuid4()), "value": -1}, "value_out_of_range"),
    ):
        answer = requests.post(server.url, json=sent | change, timeout=30)
        assert answer.json()["code"] == code
    assert console.sql("SELECT value FROM metrics WHERE user_id = :u", u=user) == [[1.0]]


@pytest.mark.parametrize("strict", [False, True])
def test_batches_of_users_on_all_nodes_are_accounted_for(cluster: str, console: Console, users: Users, serve: Serve,
                                                         strict: bool) -> None:  # fmt: skip
    server = serve("ingest_batch", cluster)
    ids = users(20)
    assert len(by_node(cluster, ids)) >= 2
    assert requests.post(server.url, json=[current(ids[0])], timeout=30).json()["stored"] == 1  # now it knows of Citus
    batch = [current(ids[n % 20], value=n, metric_id=str(uuid4())) for n in range(1000)]
    headers = {"Prefer": "handling=strict"} if strict else {}
    for stored, duplicates in ((1000, 0), (0, 1000)):
        reply = requests.post(server.url, json=batch, headers=headers, timeout=60).json()
        assert (reply["stored"], reply["duplicates"], reply["rejected"]) == (stored, duplicates, 0)
    nobody = str(uuid4())
    wrong = [
        current(ids[0], metric_id=str(uuid4())),
        current(ids[1], value=-1),
        batch[0],
        {**batch[1], "value": 7},
        current(nobody),
        batch[2],
    ]
    reply = requests.post(server.url, json=wrong, headers=headers, timeout=60).json()
    assert (reply["stored"], reply["duplicates"], reply["rejected"]) == ((0, 0, 3) if strict else (1, 2, 3))
    assert [(error["index"], error["code"]) for error in reply["errors"]] == [
        (1, "value_out_of_range"),
        (3, "metric_conflict"),
        (4, "unknown_user"),
    ]
    counted = console.sql("SELECT count(*) FROM metrics WHERE user_id = ANY (CAST(:us AS uuid[]))", us=ids)
    assert counted == [[1001 if strict else 1002]]


def test_strict_batches_of_one_node_are_stored_together_or_not_at_all(
    cluster: str, console: Console, users: Users, serve: Serve
) -> None:
    """They are a transaction of that node's connection."""
    server = serve("ingest_batch", cluster)
    (user,) = users(1)
    assert requests.post(server.url, json=[current(user)], timeout=30).json()["stored"] == 1  # now it knows of Citus
    body = [current(user, value=n, metric_id=str(uuid4())) for n in range(5)]
    headers = {"Prefer": "handling=strict"}
    refused = [*body, current(user, value=-1)]
    assert requests.post(server.url, json=refused, headers=headers, timeout=30).json()["stored"] == 0
    for stored, duplicates in ((5, 0), (0, 5)):
        reply = requests.post(server.url, json=body, headers=headers, timeout=30).json()
        assert (reply["stored"], reply["duplicates"]) == (stored, duplicates)
    assert console.sql("SELECT count(*) FROM metrics WHERE user_id = :u", u=user) == [[6]]


def test_a_call_stays_on_the_node_of_its_users(cluster: str, console: Console, users: Users) -> None:
    """It is relayed as one command, and commits in one phase."""
    ids = max(by_node(cluster, users(20)).values(), key=len)
    call = """
        SELECT store_metrics_near(CAST(:anchor AS uuid), CAST(:ids AS uuid[]), CAST(:times AS timestamptz[]),
                                  CAST(:metric_ids AS uuid[]), CAST(:ids AS uuid[]), CAST(:names AS text[]),
                                  CAST(:values AS float8[]), CAST(:new AS boolean[]))
    """
    columns = {"times": ["2024-08-08"] * len(ids), "metric_ids": [str(uuid4()) for _ in ids],
               "values": [1.0] * len(ids), "names": ["talked_time"] * len(ids), "new": [True] * len(ids)}  # fmt: skip
    connection = console.connect()
    connection.run("SET citus.log_remote_commands = on; SET client_min_messages = notice")
    assert connection.run(call, anchor=ids[0], ids=ids, **columns) == [[None]]
    sent = [notice[b"M"].decode() for notice in connection.notices if notice[b"M"].startswith(b"issuing")]
    assert len([text for text in sent if "store_metrics_near" in text]) == 1
    assert not [text for text in sent if not re.match("issuing (BEGIN|SELECT|COMMIT$)", text)]
    connection.close()
    assert console.sql("SELECT count(*) FROM metrics WHERE user_id = ANY (CAST(:ids AS uuid[]))", ids=ids) == [
        [len(ids)]
    ]


def test_overlapping_batches_are_stored_once(cluster: str, console: Console, users: Users, serve: Serve) -> None:
    server = serve("ingest_batch", cluster)
    ids = users(20)
    batch = [current(ids[n % 20], metric_id=str(uuid4())) for n in range(200)]
    bodies = [batch, batch[::-1], batch[50:] + batch[:50], batch[::2]]
    with ThreadPoolExecutor(4) as pool:
        replies = [
            reply.json() for reply in pool.map(lambda body: requests.post(server.url, json=body, timeout=60), bodies)
        ]
    assert sum(reply["stored"] for reply in replies) == 200
    assert sum(reply["duplicates"] for reply in replies) == 500
    assert console.sql("SELECT count(*) FROM metrics WHERE user_id = ANY (CAST(:ids AS uuid[]))", ids=ids) == [[200]]


def test_users_are_registered_and_changed(cluster: str, users: Users, serve: Serve) -> None:
    server = serve("users", cluster)
    (user,) = users(1)
    for name, status in (("Greg", 200), ("Anna", 200)):
        reply = requests.post(server.url, json={"user_id": user, "name": name}, timeout=30)
        assert (reply.status_code, reply.json()["name"]) == (status, name)


def test_summaries_miss_nothing(cluster: str, console: Console, users: Users, serve: Serve) -> None:
    """Though each node has its own transaction ids, and its own numbers of metrics."""
    server = serve("ingest_batch", cluster)
    ids = users(20)

    def missing() -> int:
        """How many metrics of this year the hours lack; a month that was dropped leaves more in the hours."""
        ((stored,),) = console.sql("SELECT count(*) FROM metrics WHERE timestamp >= date_trunc('year', now())")
        merged = "SELECT coalesce(sum(metric_count), 0) FROM type_hour_rollup WHERE hour >= date_trunc('year', now())"
        return int(stored - console.sql(merged)[0][0])

    console.run("summaries", "refresh")
    missing_before = missing()
    of_users = "WHERE user_id = ANY (CAST(:ids AS uuid[]))"
    for number in range(1, 4):
        body = [current(user, value=number, metric_id=str(uuid4())) for user in ids]
        assert requests.post(server.url, json=body, timeout=30).json()["stored"] == 20
        console.run("summaries", "refresh")
        for table in ("session_rollup", "user_day_rollup"):
            totals = console.sql(f"SELECT sum(metric_count), sum(total) FROM {table} {of_users}", ids=ids)
            assert totals == [[20 * number, 20 * sum(range(1, number + 1))]]
    assert missing() == missing_before


@pytest.mark.parametrize("nodes", [1, 2])
def test_summaries_have_what_was_open_during_a_refresh(console: Console, users: Users, nodes: int) -> None:
    """Its numbers were taken before the refresh: on the node of its user or, for several nodes, on the coordinator."""
    ids = [of_node[0] for of_node in by_node(console.url, users(20)).values()][:nodes]
    now = int((time.time() - 946_684_800) * 1e6)  # microseconds since 2000
    rows = [(UUID(user).bytes, now, uuid4().bytes, UUID(user).bytes, "talked_time", 1.0) for user in ids]
    writer = console.connect()
    writer.run("BEGIN")
    assert execute_blocking(writer, Operation.STORE_NEAR if nodes == 1 else Operation.STORE_METRICS, rows) == []
    console.run("summaries", "refresh")
    writer.run("COMMIT")
    writer.close()
    for _ in range(2):  # and once only
        console.run("summaries", "refresh")
        for table in ("session_rollup", "user_day_rollup"):
            merged = (
                f"SELECT user_id::text, metric_count FROM {table} WHERE user_id = ANY (CAST(:ids AS uuid[])) ORDER BY 1"
            )
            assert console.sql(merged, ids=ids) == [[user, 1] for user in sorted(ids)]
