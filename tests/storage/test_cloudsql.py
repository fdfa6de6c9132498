"""Cloud SQL's two doors: the Unix socket that Cloud Run mounts, and IAM login through the connector."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pg8000.dbapi
import pg8000.exceptions
import pg8000.native
import pytest
import requests
from click.testing import CliRunner

from metrics_ingest.admin.cli import main
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from metrics_ingest.storage.lane import Lane
from metrics_ingest.storage.operations import Commit, Operation, Outcome
from metrics_ingest.storage.seen_sessions import SeenSessions
from support.processes import BIN, Postgres, Server, query

INSTANCE = "my-project:europe-west1:metrics"


@pytest.fixture
def cloudsql(postgres: Postgres) -> Iterator[Path]:
    """A directory like /cloudsql, with the server's socket below the instance's connection name."""
    with tempfile.TemporaryDirectory(prefix="csql") as directory:
        (Path(directory) / INSTANCE).symlink_to(read_database({"DATABASE_URL": postgres.url()}).host)
        yield Path(directory)


def test_the_socket_path_of_cloud_sql_serves_migrations_and_functions(
    cloudsql: Path, postgres: Postgres, serve: Callable[..., Server]
) -> None:
    """PG* variables as in deploy/service.yaml; the colons in the path are no port."""
    postgres.run("CREATE DATABASE over_socket")
    port = read_database({"DATABASE_URL": postgres.url()}).port
    variables = {
        "PGHOST": str(cloudsql / INSTANCE),
        "PGPORT": str(port),
        "PGUSER": "postgres",
        "PGPASSWORD": "any",
        "PGDATABASE": "over_socket",
        "PGSSLMODE": "",
    }
    subprocess.run([BIN / "metrics-ingest", "migrate"], env=variables, check=True, capture_output=True)
    server = serve("users", "", **variables)
    assert requests.post(server.url, json={"name": "Greg"}, timeout=10).status_code == 201
    url = postgres.url("over_socket")
    assert query(url, "SELECT count(*) FROM users") == [[1]]


def test_the_socket_path_works_in_a_url_too(cloudsql: Path, postgres: Postgres) -> None:
    port = read_database({"DATABASE_URL": postgres.url()}).port
    url = f"postgresql://postgres:any@/postgres?host={cloudsql}/{INSTANCE}&port={port}"
    assert query(url, "SELECT 1") == [[1]]


class Connector:
    """In the connector's place: what it is asked for, and a connection of the kind that it makes."""

    asked: tuple[Any, ...] = ()

    def __init__(self, **options: Any) -> None:
        self.options = options

    def connect(self, instance: str, driver: str, **arguments: Any) -> pg8000.dbapi.Connection:
        """Connect to a real server, as the DB-API connection that the connector would give."""
        Connector.asked = (instance, driver, arguments["user"], arguments["db"], self.options)
        if instance.startswith("broken"):
            raise RuntimeError("no such instance")
        database = read_database({"DATABASE_URL": instance})
        unix_socket = f"{database.host}/.s.PGSQL.{database.port}"
        return pg8000.dbapi.connect("postgres", database=database.database, unix_sock=unix_socket, host=None)


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("google", "google.cloud", "google.cloud.sql"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("google.cloud.sql.connector")
    module.Connector = Connector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.cloud.sql.connector", module)
    monkeypatch.delitem(sys.modules, "metrics_ingest.storage.cloudsql", raising=False)
    yield
    sys.modules.pop("metrics_ingest.storage.cloudsql", None)


def test_with_an_instance_named_the_connector_logs_in(connector: None, database_url: str) -> None:
    """… without a password, and the connection serves the write path like any other."""
    environment = {
        "CLOUD_SQL_INSTANCE": database_url,
        "DATABASE_URL": "postgresql://robot%40my-project.iam@/metrics_db",
    }
    database = read_database(environment)

    async def ingest() -> list[Outcome]:
        lane = Lane(database, SeenSessions())
        try:
            row = (uuid4().bytes, 0, uuid4().bytes, uuid4().bytes, "talked_time", 1.0)
            return await lane.execute(Operation.STORE_METRICS, [row], Commit.VALID_ITEMS, time.monotonic() + 5)
        finally:
            lane.close()

    assert [outcome.kind for outcome in asyncio.run(ingest())] == ["unknown_user"]
    instance, driver, user, name, options = Connector.asked
    assert (instance, driver, user, name) == (database_url, "pg8000", "robot@my-project.iam", "metrics_db")
    assert options == {"enable_iam_auth": True, "refresh_strategy": "lazy"}


def test_migrations_and_commands_log_in_with_the_connector(
    connector: None, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DATABASE_URL names a host that nobody listens on."""
    postgres.run("CREATE DATABASE by_connector")
    monkeypatch.setenv("CLOUD_SQL_INSTANCE", postgres.url("by_connector"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://robot%40my-project.iam@127.0.0.1:1/metrics_db")
    runner = CliRunner()
    for arguments in (["migrate"], ["type", "list", "--json"], ["rejected", "replay"], ["summaries", "refresh"]):
        result = runner.invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert query(postgres.url("by_connector"), "SELECT count(*) > 3 FROM metric_types") == [[True]]


def test_what_the_connector_raises_is_an_unavailable_store(connector: None) -> None:
    database = read_database({"CLOUD_SQL_INSTANCE": "broken", "DATABASE_URL": "postgresql://robot@/metrics_db"})
    with pytest.raises(pg8000.exceptions.InterfaceError, match="no such instance"):
        connect(database, 5)


def test_without_it_the_connector_is_never_imported(database_url: str) -> None:
    code = (
        "import os, sys; from metrics_ingest.settings import read_database\n"
        "from metrics_ingest.storage.driver import connect\n"
        "connect(read_database(os.environ), 5).close()\n"
        "assert not [name for name in sys.modules if name.startswith('google.cloud.sql') or name.endswith('cloudsql')]"
    )
    subprocess.run([sys.executable, "-c", code], env={"DATABASE_URL": database_url}, check=True)
