"""Every command works on the cluster."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests

from citus.conftest import URL, Users
from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from support.console import Console
from support.metrics import current
from support.processes import Server

YEAR = random.randint(1901, 2010)  # another one each time, because the database is kept
MAINTAIN = ("partitions", "maintain", "--yes")
STORE = """
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
    VALUES (CAST(:u AS uuid), CAST(:at AS timestamptz), CAST(:m AS uuid), CAST(:u AS uuid), 'talked_time', :value)
"""


def fill(console: Console, user: str, month: str, count: int = 3) -> None:
    """Store metrics of a user in the middle of a month."""
    session = "INSERT INTO sessions VALUES (CAST(:u AS uuid), CAST(:u AS uuid), now()) ON CONFLICT DO NOTHING"
    console.sql(session, u=user)
    for value in range(count):
        console.sql(STORE, u=user, at=f"{month}-15T12:00:0{value}Z", m=str(uuid4()), value=float(value))


def metrics_of(console: Console, user: str) -> int:
    """How many metrics the user has."""
    count: int = console.sql("SELECT count(*) FROM metrics WHERE user_id = :u", u=user)[0][0]
    return count


def test_distributing_again_does_nothing(console: Console) -> None:
    steps = console.json("citus", "distribute")
    assert {step["done"] for step in steps} == {"before"}
    assert {step["table"] for step in steps} == {
        "metric_types", "user_erasures", "users", "sessions", "metrics", "session_rollup", "user_day_rollup",
    }  # fmt: skip


def test_migrating_again_keeps_what_is_distributed(console: Console) -> None:
    database = read_database({"DATABASE_URL": URL})
    assert migrations.migrate(database) == []
    console.sql("COMMENT ON FUNCTION grant_to_roles() IS 'another version'")
    assert migrations.migrate(database) == ["functions"]
    test_distributing_again_does_nothing(console)


def test_functions_are_private_on_all_nodes(console: Console) -> None:
    """A default of the coordinator's, which takes them away from everybody, has no effect on workers."""
    functions = """
        SELECT count(*), count(*) FILTER (WHERE has_function_privilege('metrics_reader', pg_proc.oid, 'EXECUTE'))
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef
    """
    on_all = (
        f"SELECT result FROM run_command_on_all_nodes($$SELECT json_build_array(a, b) FROM ({functions}) AS f (a, b)$$)"
    )
    console.sql("GRANT EXECUTE ON FUNCTION store_metrics_near TO PUBLIC")
    console.run("citus", "distribute")
    for (result,) in console.sql(on_all):
        functions_there, callable_there = json.loads(result)
        assert functions_there >= 5
        assert callable_there == 0


def test_rows_move_from_the_default_to_months_on_all_nodes(console: Console, users: Users) -> None:
    ids = users(10)
    for user in ids:
        fill(console, user, f"{YEAR}-03")
        fill(console, user, f"{YEAR}-04")
    done = console.json(*MAINTAIN)[0]
    assert done["drained"] >= 60
    listed = {row["partition"]: row for row in console.json("partitions", "list")}
    assert listed["metrics_default"]["rows"] == 0
    assert listed[f"metrics_p{YEAR}_03"]["bytes"] > 0
    assert console.sql(f"SELECT count(*) FROM metrics_p{YEAR}_03 WHERE user_id = ANY (CAST(:u AS uuid[]))", u=ids) == [
        [30]
    ]
    assert all(metrics_of(console, user) == 6 for user in ids)
    assert console.sql(f"SELECT count(*) FROM citus_tables WHERE table_name = 'metrics_p{YEAR}_03'::regclass") == [[1]]


def test_old_months_are_detached_and_dropped(console: Console, users: Users) -> None:
    ids = users(5)
    for user in ids:
        fill(console, user, f"{YEAR}-05")
        fill(console, user, f"{YEAR}-06")
    console.json(*MAINTAIN)
    detached = console.json(*MAINTAIN, "--keep", "8y", "--detach")[0]["detached"]
    assert {f"metrics_p{YEAR}_05", f"metrics_p{YEAR}_06"} <= set(detached)
    assert all(metrics_of(console, user) == 0 for user in ids)
    for user in ids:
        fill(console, user, f"{YEAR}-05")
    console.json(*MAINTAIN)
    assert f"metrics_p{YEAR}_05" in console.json(*MAINTAIN, "--keep", "8y")[0]["dropped"]
    assert all(metrics_of(console, user) == 0 for user in ids)
    for name in (f"metrics_p{YEAR}_05_detached", f"metrics_p{YEAR}_06_detached"):
        console.sql(f"DROP TABLE {name}")


def test_a_retired_type_is_refused_on_all_nodes(console: Console, users: Users, serve: Callable[..., Server]) -> None:
    server = serve("ingest_batch", URL)
    name = f"t{uuid4().hex}"
    console.run("type", "add", name, "--kind", "gauge")
    body = [current(user, metric_type=name) for user in users(8)]
    assert requests.post(server.url, json=body, timeout=30).json()["stored"] == 8
    console.run("type", "retire", name)
    assert requests.post(server.url, json=body, timeout=30).json()["rejected"] == 8
    console.run("type", "retire", name, "--undo")
    assert requests.post(server.url, json=body, timeout=30).json()["duplicates"] in (0, 8)


def test_forget_leaves_nothing_of_the_user_on_any_node(
    console: Console, users: Users, serve: Callable[..., Server]
) -> None:
    server = serve("ingest", URL)
    user, other = users(2)
    for who in (user, other):
        assert requests.post(server.url, json=current(who), timeout=30).ok
        fill(console, who, "2019-07")
    console.run("summaries", "refresh")
    erased = console.json("user", "forget", user, "--yes")
    assert (erased["metrics"], erased["sessions"], erased["users"]) == (4, 2, 1)
    for table in ("metrics", "sessions", "users", "session_rollup", "user_day_rollup", "user_erasures"):
        assert console.sql(f"SELECT count(*) FROM {table} WHERE user_id = :u", u=user) == [[0]]
    assert metrics_of(console, other) == 4
    assert requests.post(server.url, json=current(user), timeout=30).json()["code"] == "unknown_user"
    console.run("summaries", "refresh")
    totals = "SELECT sum(metric_count) FROM type_hour_rollup WHERE hour = '2019-07-15T12:00Z'"
    assert console.sql(totals) == console.sql(
        "SELECT count(*) FROM metrics WHERE timestamp >= '2019-07-15T12:00Z' AND timestamp < '2019-07-15T13:00Z'"
    )


def test_rejected_metrics_are_kept_and_replayed(console: Console, users: Users, serve: Callable[..., Server]) -> None:
    server = serve("ingest", URL)
    name = f"t{uuid4().hex}"
    (user,) = users(1)
    assert requests.post(server.url, json=current(user, metric_type=name), timeout=30).status_code == 422
    kept = "SELECT count(*) FROM rejected_metrics WHERE CAST(:u AS uuid) = ANY (named_ids)"
    assert console.sql(kept, u=user) == [[1]]
    assert console.json("user", "show", user)["rejected_metrics"] == 1
    console.run("rejected", "summary")


def test_export_has_the_metrics_of_all_nodes(console: Console, users: Users, tmp_path: Path) -> None:
    ids = users(6)
    for user in ids:
        fill(console, user, "2019-09")
    file = tmp_path / "metrics.ndjson"
    console.run("export", "--from", "2019-09-01", "--to", "2019-10-01", "-o", str(file))
    exported = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(row["user_id"] for row in exported if row["user_id"] in ids) == sorted(ids * 3)
    assert {row["user_id"] for row in console.json("user", "list")} >= set(ids)
    assert console.json("user", "show", ids[0])["metrics"] == 3


def test_status_of_summaries(console: Console) -> None:
    console.run("summaries", "refresh")
    assert console.json("summaries", "status")["hours_to_repair"] == 0


def test_dashboard_reads_the_metrics_of_all_nodes(console: Console, users: Users, serve: Callable[..., Server]) -> None:
    ingest = serve("ingest_batch", URL)
    ids = users(6)
    assert requests.post(ingest.url, json=[current(user) for user in ids], timeout=30).json()["stored"] == 6
    console.run("summaries", "refresh")
    server = serve("dashboard", URL)

    def get(path: str, **parameters: str) -> Any:
        reply = requests.get(f"{server.url}/api/{path}", params=parameters, timeout=60)
        assert reply.status_code == 200, (path, reply.text)
        return reply.json()

    assert get("overview")["users"] >= 6
    get("overview", **{"from": "2019-01-01T00:30:00Z"})
    get("series", metric_type="talked_time")
    get("series", metric_type="talked_time", user_id=ids[0], step="day")
    for path in ("types", "freshness", "activity", "users", "rejected"):
        get(path)
    (session,) = get("sessions", user_id=ids[0])["sessions"]
    assert len(get("session", user_id=ids[0], session_id=session["session_id"])["metrics"]) == 1
