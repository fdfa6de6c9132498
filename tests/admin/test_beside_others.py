"""`partitions maintain` beside other people's snapshots, dumps, locks, settings and tables."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from metrics_ingest.admin import database, partitions
from metrics_ingest.admin import drain as draining
from metrics_ingest.local import postgres as embedded
from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations, table_locks
from support.console import Console
from support.processes import Postgres, Server, eventually, query

Fill = Callable[[str, int], str]
MAINTAIN = ("partitions", "maintain", "--yes")
MONTH = "WHERE timestamp >= '2019-12-01Z' AND timestamp < '2020-01-01Z'"
PROGRAMS = embedded.utils.POSTGRES_VERSIONS[18]


def dump(url: str, path: Path) -> None:
    """Write the database to a file with pg_dump.

    It fails when a table is renamed or dropped between its list of the tables and its locks on them, so that happens at
    most twice in one run: when a default is replaced, and when the old one is dropped. Then it is run again.
    """
    command = [PROGRAMS / "pg_dump", "-Fc", "-f", path, "-d", url]
    for _ in range(3):
        done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
        if not re.search('"public.metrics_default_(next|old)" does not exist', done.stderr):
            break
    assert (done.returncode, done.stderr) == (0, "")


def restored(postgres: Postgres, path: Path) -> Console:
    """A new database with the dump's contents."""
    name = f"restored_{uuid4().hex}"
    postgres.run(f"CREATE DATABASE {name}")
    subprocess.run([PROGRAMS / "pg_restore", "-d", postgres.url(name), path], check=True, timeout=60)
    return Console(postgres.url(name))


@contextmanager
def maintaining(console: Console) -> Iterator[Any]:
    """Run `partitions maintain` in a thread; yield a future of what it did to metrics."""

    def maintain() -> Any:
        with database.open_connection() as connection:
            return draining.drain(connection, "metrics", 3)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setenv("DATABASE_URL", console.url)
        yield pool.submit(maintain)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("condition", ["", MONTH], ids=["all", "of-the-month"])
def test_reader_with_an_older_snapshot_sees_every_row_once(console: Console, filled: Fill, condition: str) -> None:
    """A snapshot from before, in a transaction that has read nothing of metrics yet."""
    filled("2019-12-01", 700)
    reader = console.connect()
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
    reader.run("SELECT count(*) FROM users")
    with maintaining(console) as run:
        time.sleep(1)
        assert reader.run(f"SELECT count(*) FROM metrics {condition}") == [[700]]
        reader.run("COMMIT")
        assert run.result(60)["drained"] == 700
    reader.close()
    assert console.sql(f"SELECT count(*) FROM metrics {condition}") == [[700]]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("condition", ["", MONTH], ids=["all", "of-the-month"])
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_reader_that_waits_for_the_attaching_transaction_sees_every_row_once(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch, condition: str, isolation: str
) -> None:
    """It begins while the locks are held, and plans when they are released."""
    filled("2019-12-01", 700)
    original = draining._refuse_older_snapshots
    counts: list[Any] = []

    def count() -> None:
        reader = console.connect()
        reader.run(f"BEGIN ISOLATION LEVEL {isolation}")
        counts.append(reader.run(f"SELECT count(*) FROM metrics {condition}"))
        reader.close()

    threads: list[threading.Thread] = []

    def pause(connection: Any) -> None:
        if not threads:
            threads.append(threading.Thread(target=count))
            threads[0].start()
            eventually(console.waits)
        original(connection)

    monkeypatch.setattr(draining, "_refuse_older_snapshots", pause)
    assert console.json(*MAINTAIN)[0]["drained"] == 700
    threads[0].join(30)
    assert counts == [[[700]]]


@pytest.mark.usefixtures("either_way")
def test_export_that_waits_for_the_attaching_transaction_is_complete(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filled("2019-12-01", 100)
    original = draining._refuse_older_snapshots
    files = [tmp_path / "all", tmp_path / "month"]
    options: tuple[list[str], ...] = ([], ["--from", "2019-12-01", "--to", "2020-01-01"])
    program = Path(__import__("sys").executable).parent / "metrics-ingest"
    exports: list[Any] = []

    def pause(connection: Any) -> None:
        if not exports:
            exports.extend(
                subprocess.Popen([program, "export", "-o", file, *more], env={"DATABASE_URL": console.url})
                for file, more in zip(files, options, strict=True)
            )
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            eventually(lambda: console.sql(waiting) == [[2]], 30)
        original(connection)

    monkeypatch.setattr(draining, "_refuse_older_snapshots", pause)
    assert console.json(*MAINTAIN)[0]["drained"] == 100
    assert [export.wait(30) for export in exports] == [0, 0]
    assert [len(file.read_text().splitlines()) for file in files] == [100, 100]


@pytest.mark.usefixtures("either_way")
def test_dumps_during_maintenance_are_whole_and_can_be_maintained(
    console: Console, filled: Fill, postgres: Postgres, tmp_path: Path
) -> None:
    """Back-to-back dumps while months are made; each is restored and maintained, and loses nothing."""
    for month in range(1, 5):
        filled(f"2019-{month:02}-01", 300)
    paths = [tmp_path / str(number) for number in range(5)]
    with maintaining(console) as run:
        for path in paths:
            dump(console.url, path)
        run.result(120)
    for path in paths[::2]:
        copy = restored(postgres, path)
        assert copy.sql("SELECT count(*), count(DISTINCT metric_id) FROM metrics") == [[1200, 1200]]
        copy.run(*MAINTAIN)
        assert copy.sql("SELECT count(*), (SELECT count(*) FROM metrics_default) FROM metrics") == [[1200, 0]]


def test_restored_table_that_is_named_like_a_month_is_never_dropped(console: Console, filled: Fill) -> None:
    """As a torn dump of an earlier version left it: the rows are only in a table that is not attached."""
    user = filled("2019-12-01", 20)
    console.sql("CREATE TABLE metrics_p2019_12 (LIKE metrics INCLUDING ALL, CONSTRAINT partition_to_be CHECK (true))")
    console.sql("WITH d AS (DELETE FROM metrics_default RETURNING *) INSERT INTO metrics_p2019_12 SELECT * FROM d")
    console.ingest({"user_id": user, "timestamp": "2019-12-20T00:00:00Z"})
    console.ingest({"user_id": user, "timestamp": "2019-11-20T00:00:00Z"})
    result = console.run(*MAINTAIN, "--keep", "100y")
    assert "warning: metrics_p2019_12 is a table, but not a partition of metrics" in result.stderr
    assert "metrics_p2019_11" in result.stdout  # the other months are made all the same
    assert console.sql("SELECT count(*) FROM metrics_p2019_12") == [[20]]
    assert console.sql("SELECT count(*) FROM metrics_default") == [[1]]
    assert "metrics_p2019_12 has the name of a month" in console.run("partitions", "list").stderr


@pytest.mark.usefixtures("either_way")
def test_kill_of_every_process_at_once_loses_nothing(mortal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure in the attaching transaction, just before it commits."""
    console = Console(mortal.clone())
    user = console.user()
    console.sql("INSERT INTO sessions SELECT CAST(:u AS uuid), CAST(:u AS uuid), now()", u=user)
    console.sql(
        "INSERT INTO metrics SELECT CAST(:u AS uuid), timestamptz '2019-12-01' + n * interval '1 second',"
        " gen_random_uuid(), CAST(:u AS uuid), 'talked_time', n FROM generate_series(1, 500) n", u=user
    )  # fmt: skip
    monkeypatch.setattr(draining, "_refuse_older_snapshots", lambda _connection: mortal.kill())
    console.run(*MAINTAIN, exit_code=3)
    mortal.start()
    assert console.sql("SELECT count(*), (SELECT count(*) FROM metrics_default) FROM metrics") == [[500, 500]]
    monkeypatch.undo()
    assert console.json(*MAINTAIN)[0]["drained"] == 500
    assert console.sql("SELECT count(*), (SELECT count(*) FROM metrics_default) FROM metrics") == [[500, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["report", "dump"])
def test_writers_answer_while_maintenance_waits_for_a_long_reader(
    console: Console, filled: Fill, serve: Callable[..., Server], what: str
) -> None:
    """An open report, and one late metric: each request is answered at once, and the month is made afterwards."""
    user = filled("2019-12-01", 5)
    function = serve("ingest", console.url)
    reader = console.connect()
    if what == "report":
        reader.run("BEGIN; SELECT count(*) FROM metrics")
    else:
        reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE metrics, sessions, users IN ACCESS SHARE MODE")
    session, slowest, requests_made = requests.Session(), 0.0, 0
    with maintaining(console) as run:
        until = time.monotonic() + 6
        while time.monotonic() < until:
            now = datetime.now(UTC).isoformat() if requests_made % 2 else "2019-12-20T00:00:00Z"
            metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": now}
            answer = session.post(f"{function.url}/ingest/", json=metric, timeout=20)
            assert answer.status_code == 200
            slowest = max(slowest, answer.elapsed.total_seconds())
            requests_made += 1
        assert not run.done()
        reader.run("COMMIT")
        reader.close()
        assert run.result(60)["drained"] == 5 + (requests_made + 1) // 2
    assert slowest < 1  # generous: the machine is shared


@pytest.mark.slow
def test_writers_answer_while_a_month_cannot_be_dropped(
    console: Console, filled: Fill, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the lock is asked for, behind a reader that has only begun: each wait is short."""
    user = filled("2019-12-01", 5)
    console.run(*MAINTAIN)
    function = serve("ingest", console.url)
    monkeypatch.setattr(table_locks, "_held_for_long", lambda *_: False)
    monkeypatch.setattr(database, "LOCK_RETRY_FOR_S", 4)
    reader, session, slowest = console.connect(), requests.Session(), 0.0
    reader.run("BEGIN; SELECT count(*) FROM metrics")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(console.run, *MAINTAIN, "--keep", "2y", exit_code=1)
        while not run.done():
            now = datetime.now(UTC).isoformat()
            metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": now}
            answer = session.post(f"{function.url}/ingest/", json=metric, timeout=20)
            assert answer.status_code == 200
            slowest = max(slowest, answer.elapsed.total_seconds())
        assert "a long transaction locks the tables" in run.result().output
    reader.close()
    assert slowest < 1  # generous: the machine is shared
    assert console.json(*MAINTAIN, "--keep", "2y")[0]["dropped"] == ["metrics_p2019_12"]


def test_time_limit_of_a_lock_is_that_of_its_transaction(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler may give each transaction another session: a limit of the session would be somebody else's."""
    filled("2019-12-01", 5)
    console.run(*MAINTAIN)
    remove, lock = partitions._remove, database.advisory_lock
    limits: list[str] = []

    def spy_on_attempt(connection: Any, *arguments: Any) -> bool:
        limits.extend(connection.run("SHOW lock_timeout")[0])
        monkeypatch.setattr(database, "advisory_lock", spy_in_transaction)
        return remove(connection, *arguments)

    def spy_in_transaction(connection: Any, *arguments: Any, **options: Any) -> None:
        limits.extend(connection.run("SHOW lock_timeout")[0])
        lock(connection, *arguments, **options)

    monkeypatch.setattr(partitions, "_remove", spy_on_attempt)
    assert console.json(*MAINTAIN, "--keep", "2y")[0]["dropped"] == ["metrics_p2019_12"]
    assert limits[:2] == ["0", f"{table_locks.FIRST_WAIT_MS}ms"]


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY"])
def test_no_month_is_dropped_too_early_whatever_the_datestyle(console: Console, filled: Fill, style: str) -> None:
    filled("2019-12-01", 5)
    user = console.user()
    console.ingest({"user_id": user, "timestamp": datetime.now(UTC).isoformat()})
    ((name,),) = console.sql("SELECT current_database()")
    for setting, value in {"datestyle": style, "timezone": "Asia/Kathmandu", "lock_timeout": "1ms",
                           "default_transaction_isolation": "repeatable read"}.items():  # fmt: skip
        console.sql(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    done = console.json(*MAINTAIN, "--keep", "6mo")
    assert [table["dropped"] for table in done] == [["metrics_p2019_12"], []]
    assert console.sql("SELECT count(*) FROM metrics") == [[1]]


def test_partition_whose_name_and_bounds_disagree_is_not_dropped(console: Console, filled: Fill) -> None:
    filled("2019-12-01", 5)
    console.run(*MAINTAIN)
    console.sql("ALTER TABLE metrics_p2019_12 RENAME TO metrics_p2030_12")
    result = console.run(*MAINTAIN, "--keep", "2y")
    assert "warning: metrics_p2030_12 was not dropped" in result.stderr
    assert console.sql("SELECT count(*) FROM metrics") == [[5]]


def test_late_metrics_of_a_detached_month_can_be_detached_again(console: Console, filled: Fill) -> None:
    user = filled("2019-12-01", 60)
    for name in ("metrics_p2019_12_detached", "metrics_p2019_12_detached_2", "metrics_p2019_12_detached_3"):
        assert console.json(*MAINTAIN, "--keep", "2y", "--detach")[0]["detached"] == ["metrics_p2019_12"]
        assert console.sql("SELECT to_regclass(:name) IS NOT NULL", name=name) == [[True]]
        console.ingest({"user_id": user, "timestamp": "2019-12-01T00:00:00Z"})


def test_autovacuum_that_a_killed_run_has_turned_off_is_on_again(console: Console) -> None:
    console.sql("ALTER TABLE metrics_default SET (autovacuum_enabled = off)")
    console.run(*MAINTAIN)
    assert console.sql("SELECT reloptions FROM pg_class WHERE relname = 'metrics_default'") == [[None]]


@pytest.mark.usefixtures("either_way")
def test_late_row_of_a_transaction_that_began_long_ago_is_moved(console: Console, filled: Fill) -> None:
    """Its received_at is before what the last step looks for first."""
    user = filled("2019-12-01", 5)
    original = draining._copy

    def copy(*arguments: Any) -> Any:
        copied = original(*arguments)
        late = "INSERT INTO metrics VALUES (:u, '2019-12-20Z', :u, :u, 'talked_time', 1, '2020-01-01Z')"
        console.sql(f"{late} ON CONFLICT DO NOTHING", u=user)
        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draining, "_copy", copy)
        assert console.json(*MAINTAIN)[0]["drained"] == 6


def test_parents_are_analysed(console: Console, filled: Fill) -> None:
    filled("2019-12-01", 500)
    console.sql(
        "INSERT INTO rejected_metrics (route, codes, payload, payload_bytes)"
        " SELECT 'ingest', '{x}', '', 0 FROM generate_series(1, 70)"
    )
    console.run(*MAINTAIN)
    counts = "SELECT reltuples FROM pg_class WHERE relname IN ('metrics', 'rejected_metrics') ORDER BY relname"
    assert console.sql(counts) == [[500.0], [70.0]]


def test_nothing_is_locked_while_it_asks(console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    filled("2019-12-01", 5)
    locks: list[Any] = []

    def confirm(*_arguments: Any, **_options: Any) -> None:
        locks.extend(console.sql("SELECT locktype, mode FROM pg_locks WHERE pid <> pg_backend_pid()"))
        locks.extend(console.sql("SELECT create_metrics_partitions(12)"))

    monkeypatch.setattr("click.confirm", confirm)
    assert console.json("partitions", "maintain", "--keep", "2y")[0]["dropped"] == ["metrics_p2019_12"]
    assert locks == [[9]]


def test_migrate_leaves_tables_of_others_alone(postgres: Postgres) -> None:
    """By a role that is no superuser, with a foreign table in public, after one maintenance by a superuser."""
    name, owner = f"owned_{uuid4().hex}", f"owner_{uuid4().hex}"
    postgres.run(f"CREATE ROLE {owner} LOGIN CREATEROLE")
    postgres.run(f"CREATE DATABASE {name} OWNER {owner}")
    superuser = postgres.url(name)
    url = superuser.replace("postgresql://postgres@", f"postgresql://{owner}@")
    query(superuser, f"GRANT ALL ON SCHEMA public TO {owner}; ALTER SCHEMA public OWNER TO {owner}")
    migrations.migrate(read_database({"DATABASE_URL": url}))
    query(superuser, "CREATE TABLE foreign_table (secret text)")
    Console(superuser).run(*MAINTAIN, "--ahead", "5")
    query(superuser, "SELECT create_metrics_partitions(7)")
    assert migrations.migrate(read_database({"DATABASE_URL": url})) == []
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname ~ '^(metrics|rejected_metrics)'"
    assert query(superuser, owners) == [[owner]]
    readable = "SELECT has_table_privilege('metrics_reader', :table, 'SELECT')"
    tables = ("foreign_table", "metrics", "session_summary")
    assert [query(superuser, readable, table=table) for table in tables] == [[[False]], [[True]], [[True]]]
