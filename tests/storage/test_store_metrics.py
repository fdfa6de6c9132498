"""Storing without looking first: a hint about sessions is no more than that, and the registry is always heard."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from metrics_ingest.model.metric import MetricRow
from metrics_ingest.settings import read_database
from metrics_ingest.storage import operations, seen_sessions
from metrics_ingest.storage.driver import connect
from metrics_ingest.storage.seen_sessions import SeenSessions
from support.processes import Stack, eventually, query


def test_seen_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that serves for months does not keep them all; what is forgotten is looked for again."""
    monkeypatch.setattr(seen_sessions, "MAX_SESSIONS", 10)
    seen = SeenSessions()
    rows: list[MetricRow] = [(uuid4().bytes, 0, uuid4().bytes, uuid4().bytes, "talked_time", 1.0) for _ in range(100)]
    for row in rows:
        assert seen.unseen([row]) == [True]
        seen.remember([row])
        assert seen.unseen([row]) == []
    assert sum(not seen.unseen([row]) for row in rows) <= 11
    assert seen.unseen([rows[-1], rows[0]]) == [False, True]


def test_session_may_begin_with_a_metric_earlier_than_those_seen() -> None:
    seen = SeenSessions()
    user, session = uuid4().bytes, uuid4().bytes
    rows: list[MetricRow] = [(user, at, uuid4().bytes, session, "talked_time", 1.0) for at in (5, 7, 3, 4)]
    seen.remember([rows[0]])
    assert seen.unseen(rows) == [False, False, True, True]
    seen.remember(rows)
    assert seen.unseen(rows) == []


def test_slow_path_locks_sessions_before_metrics(database_url: str) -> None:
    """As the fast path does. Else the two deadlock, when both move back the start of a session."""
    user, stored, sent = uuid4(), uuid4(), uuid4()
    query(database_url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")
    values = [(stored, "2024-08-08"), (stored, "2024-08-08"), (sent, "2024-08-07")]
    columns: list[list[Any]] = [
        [user] * 3, [time for _, time in values], [metric_id for metric_id, _ in values], [user] * 3,
        ["talked_time"] * 3, [1] * 3, ["t"] * 3,
    ]  # fmt: skip
    call = "SELECT store_metrics(" + ", ".join("'{" + ",".join(map(str, column)) + "}'" for column in columns) + ")"
    query(database_url, f"INSERT INTO sessions VALUES ('{user}', '{user}', '2024-08-09')")
    other = connect(read_database({"DATABASE_URL": database_url}), 30)
    other.run(f"BEGIN; UPDATE sessions SET start_time = '2024-08-07' WHERE user_id = '{user}'")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(query, database_url, call)
        eventually(lambda: query(database_url, "SELECT pid FROM pg_locks WHERE NOT granted"))
        other.run(f"INSERT INTO metrics VALUES ('{user}', '2024-08-07', '{sent}', '{user}', 'talked_time', 1)")
        other.run("COMMIT")
        assert [entry["outcome"] for entry in done.result(10)[0][0]] == ["duplicate", "duplicate"]
    other.close()
    assert query(database_url, f"SELECT start_time::text FROM sessions WHERE user_id = '{user}'") == [
        ["2024-08-07 00:00:00+00"]
    ]


def test_session_that_was_seen_and_is_gone_is_made_again(stack: Stack, metric: dict[str, Any]) -> None:
    """As `metrics-ingest user forget` or an operator may remove it under a function that has seen it stored."""
    user = metric["user_id"]
    for _ in range(2):
        assert stack.send({**metric, "metric_id": str(uuid4())}).status_code == 200
    stack.query("DELETE FROM metrics WHERE user_id = :u", u=user)
    stack.query("DELETE FROM sessions WHERE user_id = :u", u=user)
    assert stack.send({**metric, "metric_id": str(uuid4())}).status_code == 200
    assert len(stack.stored(user)) == 1
    assert stack.query("SELECT count(*) FROM sessions WHERE user_id = :u", u=user) == [[1]]


def test_user_who_was_seen_and_is_gone_is_unknown(stack: Stack, metric: dict[str, Any]) -> None:
    user = metric["user_id"]
    assert stack.send(metric).status_code == 200
    for table in ("metrics", "sessions", "users"):
        stack.query(f"DELETE FROM {table} WHERE user_id = :u", u=user)
    answer = stack.send({**metric, "metric_id": str(uuid4())})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_user")
    assert stack.stored(user) == []


@pytest.fixture(scope="module")
def retired(stack: Stack) -> str:
    stack.query(
        "INSERT INTO metric_types (metric_type, kind, aggregation, retired_at) VALUES ('old', 'gauge', 'mean', now())"
    )
    return "old"


REFUSED = [
    *(("not_registered", value, "unknown_metric_type") for value in (0, 1, 0.5, -1e300)),
    *(("old", value, "unknown_metric_type") for value in (0, 1, 0.5)),
    ("speaker_used", 0.5, "value_out_of_range"),
    ("speaker_used", 2, "value_out_of_range"),
    ("voice_sentiment", 1.0000000001, "value_out_of_range"),
    ("talked_time", -1e-300, "value_out_of_range"),
]


@pytest.mark.parametrize(("metric_type", "value", "code"), REFUSED)
def test_registry_refuses_though_the_session_is_there(
    stack: Stack, metric: dict[str, Any], retired: str, metric_type: str, value: float, code: str
) -> None:
    """Only the registry makes a metric invalid then; the others of the request are stored, and reported as stored."""
    assert stack.send(metric).status_code == 200
    wrong = {**metric, "metric_id": str(uuid4()), "metric_type": metric_type, "value": value}
    answer = stack.send(wrong)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    sound = [{**metric, "metric_id": str(uuid4())} for _ in range(2)]
    reported = stack.send_batch([sound[0], wrong, sound[1]]).json()
    assert (reported["stored"], reported["duplicates"], reported["rejected"]) == (2, 0, 1)
    assert [(error["index"], error["code"]) for error in reported["errors"]] == [(1, code)]
    assert len(stack.stored(metric["user_id"])) == 3


def test_rejected_metric_makes_no_session(stack: Stack, metric: dict[str, Any], retired: str) -> None:
    for change in ({"value": -1}, {"metric_type": "not_registered"}, {"metric_type": retired}):
        each = metric | change
        assert stack.send({**each, "session_id": str(uuid4())}).status_code == 422
    assert stack.query("SELECT count(*) FROM sessions WHERE user_id = :u", u=metric["user_id"]) == [[0]]


def test_type_that_is_registered_while_its_metric_is_stored_is_not_forgotten(
    stack: Stack, metric: dict[str, Any]
) -> None:
    """The statement that inserts leaves the metric out, and the one that asks why finds nothing wrong."""
    user = metric["user_id"]
    assert stack.send(metric).status_code == 200  # so that the session is there
    waiting, of_new_type = {**metric, "metric_id": str(uuid4())}, {**metric, "metric_id": str(uuid4())}
    of_new_type["metric_type"] = "new_meanwhile"
    columns = "user_id, timestamp, metric_id, session_id, metric_type, value"
    other = connect(read_database({"DATABASE_URL": stack.database_url}), 30)
    other.run(
        f"BEGIN; INSERT INTO metrics ({columns}) SELECT user_id, timestamp, '{waiting['metric_id']}', session_id,"
        f" metric_type, value FROM metrics WHERE user_id = '{user}'"
    )
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stack.send_batch, [waiting, of_new_type])
        eventually(lambda: stack.query("SELECT pid FROM pg_locks WHERE NOT granted"))
        stack.query(
            "INSERT INTO metric_types (metric_type, kind, aggregation) VALUES ('new_meanwhile', 'gauge', 'mean')"
        )
        other.run("ROLLBACK")
        assert answer.result(20).json()["stored"] == 2
    other.close()
    assert len(stack.stored(user)) == 3


@pytest.mark.parametrize(
    ("held", "taken"),
    [
        ("users", set()),
        ("sessions", {"users AccessShareLock"}),
        ("metrics", {"users AccessShareLock", "sessions RowShareLock", "sessions RowExclusiveLock"}),
    ],
)
def test_tables_are_locked_in_the_order_of_their_keys(database_url: str, held: str, taken: set[str]) -> None:
    """Users, sessions, metrics, as migrations and maintenance do: the other way round they deadlock."""
    user = uuid4()
    query(database_url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")
    query(database_url, f"INSERT INTO sessions (user_id, session_id, start_time) VALUES ('{user}', '{user}', now())")
    arguments = (user, "2024-08-08", user, user, "talked_time", "1", "")
    call = "SELECT store_metrics(" + ", ".join(f"'{{{argument}}}'" for argument in arguments) + ")"
    waiting = f"SELECT pid FROM pg_locks WHERE NOT granted AND relation = '{held}'::regclass"
    held_by = (
        "SELECT relation::regclass || ' ' || mode FROM pg_locks WHERE pid = {pid} AND granted"
        " AND relation::regclass::text IN ('users', 'sessions', 'metrics')"
    )
    holder = connect(read_database({"DATABASE_URL": database_url}), 30)
    holder.run(f"BEGIN; LOCK TABLE {held} IN ACCESS EXCLUSIVE MODE")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(query, database_url, call)
        ((pid,),) = eventually(lambda: query(database_url, waiting))
        locks = query(database_url, held_by.format(pid=pid))
        holder.run("ROLLBACK")
        assert done.result(10) == [[None]]
    assert {lock for (lock,) in locks} == taken
    holder.close()


def test_batch_of_everything_is_accounted_for_by_position(database_url: str) -> None:
    """What is stored already, or partly, by the rule for each: the registry first, then the identity."""
    user, stranger = uuid4().bytes, uuid4().bytes
    query(database_url, "INSERT INTO users (user_id, name) VALUES (CAST(:id AS uuid), 'Greg')", id=user.hex())

    def row(metric_type: str = "talked_time", value: float = 1.0, user: bytes = user) -> MetricRow:
        return (user, 0, uuid4().bytes, user, metric_type, value)

    connection = connect(read_database({"DATABASE_URL": database_url}), 30)

    def store(*rows: MetricRow) -> dict[int, str]:
        outcomes = operations.execute_blocking(connection, operations.Operation.STORE_METRICS, rows)
        return {one.position: one.kind + " again" * one.facts.get("repeat", False) for one in outcomes}

    stored, narrowed, retired = before = [row(), row("voice_sentiment"), row("speaker_used")]
    assert store(*before) == {}
    assert store(*before) == dict.fromkeys(range(3), "duplicate")
    query(database_url, "UPDATE metric_types SET max_value = 0 WHERE metric_type = 'voice_sentiment'")
    query(database_url, "UPDATE metric_types SET retired_at = now() WHERE metric_type = 'speaker_used'")
    new = row()
    assert store(
        new, stored, narrowed, retired, (*stored[:5], 2.0), stored, new, row(user=stranger), row("talked_tim"), row()
    ) == {
        1: "duplicate", 2: "value_out_of_range", 3: "unknown_metric_type", 4: "metric_conflict", 5: "duplicate again",
        6: "duplicate again", 7: "unknown_user", 8: "unknown_metric_type",
    }  # fmt: skip
    query(database_url, "INSERT INTO user_erasures (user_id) VALUES (CAST(:id AS uuid))", id=user.hex())
    assert store(stored) == {0: "unknown_user"}
    connection.close()
    assert query(database_url, "SELECT count(*) FROM metrics") == [[5]]


@pytest.mark.parametrize("session", ["new", "flagged", "seen"])
def test_lone_metric_takes_one_transaction_id(database_url: str, session: str) -> None:
    """A savepoint would take another: then a database must be vacuumed against their wraparound twice as often."""
    user = uuid4()
    query(database_url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")
    if session != "new":
        query(database_url, f"INSERT INTO sessions VALUES ('{user}', '{user}', '2024-08-09')")
    arguments = (user, "2024-08-08", user, user, "talked_time", "1", "" if session == "seen" else "t")
    call = "SELECT store_metrics(" + ", ".join(f"'{{{argument}}}'" for argument in arguments) + ")"
    connection = connect(read_database({"DATABASE_URL": database_url}), 30)
    connection.run("BEGIN")
    assert connection.run(call) == [[None]]
    for table in ("metrics", "sessions"):
        ids = f"SELECT xmin::text, pg_current_xact_id()::xid::text FROM {table}"
        ((of_row, of_transaction),) = connection.run(ids)
        assert of_row == of_transaction or (table, session) == ("sessions", "seen")
    connection.close()
