"""Migrations: apply, roll back and apply again, on several PostgreSQL versions, two at once, and after a kill."""

import inspect
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yoyo

from metrics_ingest.admin.database import PARTITIONS_LOCK, SUMMARIES_LOCK, advisory_lock
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
ROOT = Path(__file__).parents[2]
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
DEBIAN = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))]
embedded.utils.POSTGRES_VERSIONS.update({int(path.parent.name): path for path in DEBIAN})


@pytest.fixture(scope="module", params=[15, 16, 18])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    if request.param not in embedded.utils.POSTGRES_VERSIONS:
        pytest.skip(f"PostgreSQL {request.param} is not installed here (Debian: postgresql-{request.param})")
    server = Postgres(request.param)
    assert server.run("SHOW server_version_num")[0][0].startswith(str(request.param))
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
    url = server.clone()
    database = read_database({"DATABASE_URL": url})
    before = query(url, SCHEMA)
    assert before
    names = migrations.rollback(database)
    assert names[0] == "functions"
    assert [row for row in query(url, SCHEMA) if "yoyo" not in row[1]] == []
    assert migrations.migrate(database) == names[::-1]
    assert query(url, SCHEMA) == before
    assert migrations.migrate(database) == []


def test_each_rollback_restores_the_schema_before_its_migration(empty: str) -> None:
    with migrations.Migrator(read_database({"DATABASE_URL": empty})) as migrator:
        every = yoyo.read_migrations(str(migrations.directory()))
        before = {}
        for migration in migrator.to_apply(every):
            before[migration.id] = query(empty, SCHEMA)
            migrator.apply_one(migration)
        assert before.keys() == {path.stem for path in migrations_on_disk()}
        for migration in migrator.to_rollback(every):
            migrator.rollback_one(migration)
            left = [row for row in query(empty, SCHEMA) if "yoyo" not in row[1]]
            assert left == [row for row in before[migration.id] if "yoyo" not in row[1]], migration.id


def test_functions_store_a_batch_on_each_server(server: Postgres) -> None:
    store_a_batch_twice(server.clone())


def store_a_batch_twice(url: str) -> None:
    query(url, f'SELECT register_users(\'[{{"user_id":"{USER}","name":"Greg"}}]\')')
    types = ["talked_time", "talked_time", "speaker_used", "nothing"]
    columns = [[USER] * 4, ["2024-08-08T12:34:56Z"] * 4, [USER] * 4, [USER] * 4, types, ["1"] * 4]
    batch = ", ".join("'{" + ",".join(column) + "}'" for column in [*columns, ["t"] * 4])
    repeated = [(2, "duplicate"), (3, "metric_conflict"), (4, "unknown_metric_type")]
    for outcomes in (repeated, [(1, "duplicate"), *repeated]):
        ((answer,),) = query(url, f"SELECT store_metrics({batch})")
        assert sorted((entry["position"], entry["outcome"]) for entry in answer) == outcomes
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


def test_it_waits_for_no_other_command_when_no_month_is_missing(database_url: str) -> None:
    """Maintenance, an erasure and a refresh hold these locks."""
    database = read_database({"DATABASE_URL": database_url})
    holder = connect(database, 60)
    for name in (PARTITIONS_LOCK, SUMMARIES_LOCK):
        advisory_lock(holder, name)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(migrations.migrate, database)
        try:
            assert done.result(20) == []
        finally:
            holder.close()


def test_four_at_once_apply_each_migration_once(empty: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: command("migrate", url=empty), range(4)))
    assert [process.returncode for process in done] == [0] * 4, done
    for name in ("0001", "0005", "functions"):
        assert sum(process.stdout.count(f"applied {name}") for process in done) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("9999-never-ends.sql", "CREATE TABLE half_done ();\nSELECT pg_sleep(600);\n"),
        ("functions/zzz.sql", "CREATE FUNCTION half_done() RETURNS int RETURN 1;\nSELECT pg_sleep(600);\n"),
    ],
    ids=["table", "function"],
)
def test_killed_migration_leaves_no_lock_and_nothing_of_its_step(
    empty: str, tmp_path: Path, file: str, text: str
) -> None:
    """It is killed in its last step, after that has created something; earlier steps stay."""
    process = subprocess.Popen([sys.executable, "-c", migrating(empty, copied(tmp_path, file, text))])
    sleeping = "SELECT {} FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    eventually(lambda: query(empty, sleeping.format("pid")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert query(empty, "SELECT count(*) FROM users") == [[0]]
    query(empty, sleeping.format("pg_terminate_backend(pid)"))
    assert query(empty, "SELECT to_regclass('half_done'), to_regproc('half_done'), to_regproc('store_metrics')") == [
        [None, None, None]
    ]
    done = command("migrate", url=empty)
    assert (done.returncode, done.stdout) == (0, "applied functions\n")


def copied(tmp_path: Path, file: str, text: str) -> Path:
    """A copy of the migrations with another file."""
    directory = tmp_path / "migrations"
    shutil.copytree(migrations.directory(), directory)
    (directory / file).write_text(text)
    return directory


def migrating(url: str, directory: Path) -> str:
    """A Python program that migrates a database with the migrations in a directory."""
    return (
        "import pathlib; from metrics_ingest import settings; from metrics_ingest.storage import migrations; "
        f"migrations.directory = lambda: pathlib.Path({str(directory)!r}); "
        f"migrations.migrate(settings.read_database({{'DATABASE_URL': {url!r}}}))"
    )


def test_functions_are_applied_again_only_when_their_text_has_changed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = read_database({"DATABASE_URL": database_url})
    answer = "CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT {}';\n"
    directory = copied(tmp_path, "functions/answer.sql", answer.format(1))
    monkeypatch.setattr(migrations, "directory", lambda: directory)
    for number in (1, 2):
        (directory / "functions" / "answer.sql").write_text(answer.format(number))
        assert migrations.migrate(database) == ["functions"]
        assert migrations.migrate(database) == []
        assert query(database_url, "SELECT answer()") == [[number]]


def test_functions_for_citus_are_applied_where_the_extension_is(empty: str) -> None:
    """Those that store run here, too: with the extension's row in the catalog, but without the extension."""
    database = read_database({"DATABASE_URL": empty})
    migrations.migrate(database)
    functions = "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    plain = dict(query(empty, functions))
    connection = connect(database, 30)
    connection.run("SET allow_system_table_mods = on")
    connection.run(
        "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)"
        " VALUES (99999, 'citus', 10, 'public'::regnamespace, false, '13')"
    )
    connection.close()
    assert migrations.migrate(database) == ["functions"]
    assert migrations.migrate(database) == []
    changed = {name for name, source in query(empty, functions) if source != plain.get(name)}
    assert changed >= {"store_metrics", "insert_metrics", "existing_metrics", "locate_users", "store_metrics_near"}
    store_a_batch_twice(empty)
    assert migrations.rollback(database)[0] == "functions"
    assert query(empty, functions) == []


def test_database_of_an_unreleased_version_is_refused_with_what_to_do(empty: str, tmp_path: Path) -> None:
    unreleased = tmp_path / "migrations"
    (unreleased / "functions").mkdir(parents=True)
    for name in ("0001-create-users-sessions-metrics", "0014-store-without-looking-first"):
        (unreleased / f"{name}.sql").write_text("CREATE TABLE IF NOT EXISTS users (user_id uuid);\n")
    (unreleased / "functions" / "grant_to_roles.sql").write_text(
        "CREATE OR REPLACE FUNCTION grant_to_roles() RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
        "CREATE OR REPLACE FUNCTION create_metrics_partitions(int) RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
    )
    subprocess.run([sys.executable, "-c", migrating(empty, unreleased)], check=True)
    before = query(empty, SCHEMA)
    for arguments in (["migrate"], ["migrate", "--rollback", "--yes"]):
        refused = command(*arguments, url=empty)
        assert refused.returncode == 1
        assert refused.stderr.startswith("Error: cannot migrate: the database has migrations that this version")
        assert "0014-store-without-looking-first" in refused.stderr
        assert "`metrics-ingest export`, `metrics-ingest load`" in refused.stderr
        assert query(empty, SCHEMA) == before


def test_command_says_what_it_did(empty: str) -> None:
    first, second = command("migrate", url=empty), command("migrate", url=empty)
    assert first.stdout.splitlines() == [
        "applied 0001-create-tables",
        "applied 0002-create-roles",
        "applied 0003-keep-rejected-metrics",
        "applied 0004-create-summaries",
        "applied 0005-mark-keyed-rejections",
        "applied 0006-count-rejected-metrics",
        "applied functions",
    ]
    assert second.stdout == "nothing to do: the schema is up to date\n"
    assert command("migrate", "--rollback", url=empty).returncode == 1  # it asks, and nobody answers
    assert "rolled back 0001" in command("migrate", "--rollback", "--yes", url=empty).stdout
    away = command("migrate", url="postgresql://u:secret@127.0.0.1:1/d")
    assert (away.returncode, "secret" in away.stderr, away.stderr.count("\n")) == (3, False, 1)


def migrations_on_disk() -> set[Path]:
    return {path for path in migrations.directory().glob("*.sql") if not path.name.endswith(".rollback.sql")}


def test_every_migration_has_its_rollback() -> None:
    files = set(migrations.directory().glob("*.sql"))
    assert {path.with_suffix(".rollback.sql") for path in migrations_on_disk()} == files - migrations_on_disk()


def test_every_constraint_is_named_in_the_sql(database_url: str) -> None:
    """Those of partitions aside; NOT NULL has a name only since PostgreSQL 18."""
    named = set(re.findall(r"CONSTRAINT (\w+)", "".join(path.read_text() for path in migrations_on_disk())))
    names: list[Any] = query(
        database_url,
        "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' "
        "AND conparentid = 0 AND conrelid::regclass::text !~ '^_?yoyo|^metrics_p|^metrics_default'",
    )
    assert len(names) > 10
    assert [name for (name,) in names if name not in named] == []


def test_shape_of_yoyo_is_the_one_that_the_migrator_uses() -> None:
    look_at = """yoyo has changed, or its bound in pyproject.toml. What to look at (yoyo/backends/base.py):
    - DatabaseBackend's other methods call `connect`, `lock` and `copy`; the last two are context managers;
    - `apply_one` and `rollback_one` run a migration's steps and record it, without a commit of their own in between;
    - `transaction` sends BEGIN by `begin`, on a connection in autocommit mode.
    Then raise the bound."""
    assert "yoyo-migrations>=9.0,<10" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    base = migrations.Migrator.__base__
    parameters = {
        name: list(inspect.signature(getattr(base, name)).parameters)[1:]
        for name in ("connect", "lock", "copy", "apply_one", "rollback_one", "transaction")
    }
    assert parameters == {
        "connect": ["dburi"], "lock": ["timeout"], "copy": [], "apply_one": ["migration", "force", "mark"],
        "rollback_one": ["migration", "force"], "transaction": ["rollback_on_exit"],
    }, look_at  # fmt: skip
