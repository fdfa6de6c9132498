"""The schema: it comes, goes and comes back on every PostgreSQL there is, whoever else is migrating."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yoyo

from metrics_ingest.local import postgres as embedded
from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from metrics_ingest.storage.driver import connect
from support.processes import BIN, Postgres, eventually, query

SCHEMA = """
SELECT 'column', table_name || '.' || column_name || ' ' || data_type FROM information_schema.columns
    WHERE table_schema = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'function', oid::regprocedure || md5(prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2
"""
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
DEBIAN = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))]
embedded.utils.POSTGRES_VERSIONS.update({int(path.parent.name): path for path in DEBIAN})


@pytest.fixture(scope="module", params=[15, 16, 18])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    if request.param not in embedded.utils.POSTGRES_VERSIONS:
        pytest.skip(f"PostgreSQL {request.param} is not installed here (Debian: postgresql-{request.param})")
    server = Postgres(request.param)
    yield server
    server.close()


@pytest.fixture
def empty(postgres: Postgres) -> str:
    """An empty database."""
    name = f"empty_{uuid4().hex}"
    postgres.run(f"CREATE DATABASE {name}")
    return postgres.url(name)


def command(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "metrics-ingest", *arguments],
        env={"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_applies_rolls_back_and_applies_again(server: Postgres) -> None:
    assert server.run("SHOW server_version_num")[0][0].startswith(
        (str(server.server.bin_path).count("18") and "18") or "1"
    )
    url = server.clone()
    database = read_database({"DATABASE_URL": url})
    before = query(url, SCHEMA)
    assert before
    names = migrations.rollback(database)
    assert [row for row in query(url, SCHEMA) if "yoyo" not in row[1]] == []
    assert migrations.migrate(database) == names[::-1]
    assert query(url, SCHEMA) == before
    assert migrations.migrate(database) == []


def test_each_rollback_brings_back_what_was_before(empty: str) -> None:
    """Functions with their bodies included; one step at a time, as an operator would go back."""
    with migrations.open_backend(read_database({"DATABASE_URL": empty})) as backend:
        every = yoyo.read_migrations(str(migrations.directory()))
        before = {}
        for migration in backend.to_apply(every):
            before[migration.id] = query(empty, SCHEMA)
            backend.apply_one(migration)
        assert len(before) > 5
        for migration in backend.to_rollback(every):
            backend.rollback_one(migration)
            left = [row for row in query(empty, SCHEMA) if "yoyo" not in row[1]]
            assert left == [row for row in before[migration.id] if "yoyo" not in row[1]], migration.id


def test_ingest_function_works_on_each_server(server: Postgres) -> None:
    url = server.clone()
    user = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
    query(url, f'SELECT register_users(\'[{{"user_id":"{user}","name":"Greg"}}]\')')
    types = ["talked_time", "talked_time", "speaker_used", "nothing"]
    columns = [[USER] * 4, ["2024-08-08T12:34:56Z"] * 4, [USER] * 4, [USER] * 4, types, ["1"] * 4]
    batch = ", ".join("'{" + ",".join(column) + "}'" for column in [*columns, ["t"] * 4])
    for outcomes in ([(2, "duplicate"), (3, "metric_conflict"), (4, "unknown_metric_type")], None):
        (((answer,),),) = (query(url, f"SELECT store_metrics({batch})"),)
        if outcomes:
            assert sorted((entry["position"], entry["outcome"]) for entry in answer) == outcomes
        else:
            assert [entry["outcome"] for entry in answer].count("duplicate") == 2
    assert query(url, "SELECT count(*) FROM metrics") == [[1]]


def with_metric(url: str, instant: str) -> str:
    """Store a metric at an SQL instant and return the partition that it went to."""
    query(url, f"INSERT INTO users VALUES ('{USER}', 'Greg') ON CONFLICT DO NOTHING")
    query(url, f"INSERT INTO sessions VALUES ('{USER}', '{USER}', now()) ON CONFLICT DO NOTHING")
    insert = f"INSERT INTO metrics VALUES ('{USER}', {instant}, gen_random_uuid(), '{USER}', 'talked_time', 1)"
    ((partition,),) = query(url, f"{insert} RETURNING tableoid::regclass::text")
    return str(partition)


def test_this_month_and_the_next_two_have_partitions(database_url: str) -> None:
    this = datetime.now(UTC)
    for ahead in range(3):
        year, month = this.year + (this.month + ahead - 1) // 12, (this.month + ahead - 1) % 12 + 1
        assert with_metric(database_url, f"'{year}-{month:02}-01T00:00:00Z'") == f"metrics_p{year}_{month:02}"
    assert with_metric(database_url, "now() + interval '4 months'") == "metrics_default"


def test_partitions_are_made_in_utc_whatever_the_server_thinks(database_url: str) -> None:
    bounds = "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname LIKE 'metrics\\_p20%' AND relkind = 'r'"
    connection = connect(read_database({"DATABASE_URL": database_url}), 30)
    connection.run("SET timezone = 'Pacific/Kiritimati'")
    connection.run("SELECT create_metrics_partitions(5)")
    connection.run("SET timezone = 'UTC'")
    found = [bound for (bound,) in connection.run(bounds)]
    connection.close()
    assert len(found) == 6
    assert all(bound.count("-01 00:00:00+00") == 2 for bound in found), found


def test_month_with_rows_in_the_default_partition_is_left_there(database_url: str) -> None:
    assert with_metric(database_url, "now() + interval '4 months'") == "metrics_default"
    assert query(database_url, "SELECT create_metrics_partitions(6)") == [[3]]
    assert query(database_url, "SELECT count(*) FROM metrics_default") == [[1]]


def test_two_at_once_do_not_collide(empty: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: command("migrate", url=empty), range(4)))
    assert [process.returncode for process in done] == [0] * 4, done
    assert sum(process.stdout.count("applied 0001") for process in done) == 1


def test_a_killed_one_leaves_nothing_locked_and_nothing_half_done(empty: str, tmp_path: Path) -> None:
    """It is killed in the middle of its last migration, which had made a table already."""
    copied = tmp_path / "migrations"
    shutil.copytree(migrations.directory(), copied)
    (copied / "9999-never-ends.sql").write_text("CREATE TABLE half_done ();\nSELECT pg_sleep(600);\n")
    script = (
        "import sys, pathlib; from metrics_ingest import migrations, settings; "
        f"migrations.directory = lambda: pathlib.Path({str(copied)!r}); "
        f"migrations.migrate(settings.read_database({{'DATABASE_URL': {empty!r}}}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    sleeping = "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND datname = current_database()"
    eventually(lambda: query(empty, sleeping))
    process.send_signal(signal.SIGKILL)
    process.wait()
    query(empty, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%'")
    done = command("migrate", url=empty)
    assert (done.returncode, done.stdout) == (0, "nothing to do: the schema is up to date\n")
    assert query(empty, "SELECT to_regclass('half_done')") == [[None]]


def test_command_says_what_it_did(empty: str) -> None:
    first, second = command("migrate", url=empty), command("migrate", url=empty)
    assert first.stdout.splitlines()[0] == "applied 0001-create-users-sessions-metrics"
    assert second.stdout == "nothing to do: the schema is up to date\n"
    assert command("migrate", "--rollback", url=empty).returncode == 1  # it asks, and nobody answers
    assert "rolled back 0001" in command("migrate", "--rollback", "--yes", url=empty).stdout
    away = command("migrate", url="postgresql://u:secret@127.0.0.1:1/d")
    assert (away.returncode, "secret" in away.stderr, away.stderr.count("\n")) == (1, False, 1)


def test_every_migration_has_its_rollback_and_every_constraint_a_name() -> None:
    files = {path.name for path in migrations.directory().glob("*.sql")}
    applied = {name for name in files if not name.endswith(".rollback.sql")}
    assert {name.removesuffix(".sql") + ".rollback.sql" for name in applied} == files - applied


def test_generated_constraint_names_are_not_relied_on(database_url: str) -> None:
    """Those of partitions aside, each constraint is named in the SQL."""
    text = "".join(path.read_text() for path in migrations.directory().glob("*.sql"))
    names: list[Any] = query(
        database_url,
        "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' "
        "AND conparentid = 0 AND conrelid::regclass::text !~ '^_?yoyo|^metrics_p|^metrics_default'",
    )
    assert [name for (name,) in names if name not in text] == []
