"""What the tests run: PostgreSQL, databases cloned from a migrated template, and functions as real processes."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pg8000.native
import psutil
import requests

from metrics_ingest import shutdown
from metrics_ingest.local import postgres as embedded
from metrics_ingest.server import deadlines
from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations, nodes, writer
from metrics_ingest.storage.driver import connect

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TEMPLATE = "migrated_template"
CHOSEN = {name: os.environ[name] for name in ("SERVER",) if name in os.environ}  # SERVER=stock make test


class Postgres:
    """A running embedded server with a migrated template database. Closing it removes its data."""

    def __init__(self, version: int = 18, **parameters: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="metrics-ingest-pg-")
        data = Path(self._directory.name) / "data"
        self.server: Any = embedded.get_server(data, cleanup_mode=None, postgres_version=version)
        # Without fsync the tests are faster, and lose nothing that matters; the durability tests turn it on.
        for name, value in {"fsync": "off", "max_connections": "200", **parameters}.items():
            self.run(f"ALTER SYSTEM SET {name} = '{value}'")
        self.restart()
        self.run(f"CREATE DATABASE {TEMPLATE}")
        migrations.migrate(read_database({"DATABASE_URL": self.url(TEMPLATE)}))

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return embedded.url_of(self.server, database)

    def run(self, sql: str, database: str = "postgres") -> list[Any]:
        """Run a statement as the superuser and return its rows."""
        return query(self.url(database), sql)

    def clone(self) -> str:
        """Make a migrated database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return self.url(name)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return int(self.server.get_pid())

    def start(self) -> None:
        """Start it again after it was stopped or killed."""
        self.server.ensure_postgres_running()

    def stop(self) -> None:
        """Stop it in fast mode: connections are ended."""
        self.server.stop()

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        self._directory.cleanup()


@contextmanager
def connected(url: str, timeout_s: float = 30) -> Iterator[pg8000.native.Connection]:
    """A connection to a database, closed at the end of the block."""
    connection = connect(read_database({"DATABASE_URL": url}), timeout_s)
    try:
        yield connection
    finally:
        connection.close()


def query(url: str, sql: str, **parameters: Any) -> list[Any]:
    """Run one statement on a database and return its rows."""
    with connected(url) as connection:
        return connection.run(sql, **parameters) or []


class Server:
    """A server process: its base URL, and all that it has printed."""

    def __init__(
        self, command: list[str], environment: dict[str, str], port: int, directory: Path | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the server
        self.process = subprocess.Popen(
            command,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **CHOSEN, **environment},
            cwd=directory or "/",  # a function must not depend on where it is started
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes, which serve the requests."""
        return list(psutil.Process(self.process.pid).children())

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return os.pread(self._log.fileno(), 10_000_000, 0).decode(errors="replace")

    def wait_until_ready(self, timeout_s: float = 20) -> None:
        """Wait for the first 200; fail with the log when there is none."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"exited with {self.process.returncode}:\n{self.log}")
            try:
                return requests.get(self.url, timeout=5).ok
            except (requests.ConnectionError, requests.Timeout):
                return False

        eventually(answers, timeout_s)

    def kill(self, *, worker_only: bool = False) -> None:
        """Kill it with SIGKILL: all of it, or only a worker, which it will replace."""
        if worker_only:
            self.workers[0].kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self) -> int:
        """End it and all its children; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def close(self) -> None:
        """Stop it and forget its log."""
        self.stop()
        self._log.close()


@dataclass(frozen=True)
class Stack:
    """The three functions, each a process of its own, on one database."""

    database_url: str
    ingest: Server
    ingest_batch: Server
    users: Server

    def user(self) -> str:
        """Register a new user and return its id."""
        answer = requests.post(f"{self.users.url}/users/", json={"name": "Greg"}, timeout=10)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["user_id"])

    def send(self, metric: Any, **headers: str) -> requests.Response:
        """POST one metric."""
        return requests.post(f"{self.ingest.url}/ingest/", json=metric, headers=headers, timeout=30)

    def send_batch(self, metrics: Any, **headers: str) -> requests.Response:
        """POST many metrics."""
        return requests.post(f"{self.ingest_batch.url}/ingest_batch/", json=metrics, headers=headers, timeout=60)

    def query(self, sql: str, **parameters: Any) -> list[Any]:
        """Run one statement on the database of the functions and return its rows."""
        return query(self.database_url, sql, **parameters)

    def stored(self, user_id: str) -> list[Any]:
        """The user's rows in `metrics`, in order."""
        return self.query(
            "SELECT * FROM metrics WHERE user_id = :user_id ORDER BY timestamp, metric_id", user_id=user_id
        )


async def in_a_new_process(answer: Awaitable[Any]) -> Any:
    """Await what a service answers in this process, as if it were the process's first request."""
    for made_by_the_first_request in (
        deadlines.body_deadlines,
        shutdown.shutdown_deadline,
        writer.writer,
        nodes.nodes,
    ):
        made_by_the_first_request.cache_clear()
    return await answer


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start_function(name: str, database_url: str, port: int = 0, /, **environment: str) -> Server:
    """Start `functions-framework --target NAME` by the plain command and wait until it answers."""
    port = port or free_port()
    source = ROOT / "functions" / name / "main.py"
    server = Server(
        [str(BIN / "functions-framework"), "--target", name, "--source", str(source), "--port", str(port)],
        {"DATABASE_URL": database_url, "ALLOW_ANONYMOUS": "true", "HOST": "127.0.0.1", **environment},
        port,
    )
    try:
        server.wait_until_ready()
    except BaseException:
        server.close()
        raise
    return server


@contextmanager
def function(name: str, database_url: str, **environment: str) -> Iterator[Server]:
    """Run a function until the block ends. It is killed then, because an orderly end takes half a second."""
    server = start_function(name, database_url, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
        server.close()


def eventually(condition: Callable[[], Any], timeout_s: float = 10) -> Any:
    """Poll until the condition is true, and return what it gave; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s")
        time.sleep(0.02)
    return result
