"""Fixtures: one PostgreSQL for the session, a database for each test or module, and functions as real processes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from processes import Postgres, Server, function, query

from metrics_ingest.settings import settings


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """A migrated database of the test's own."""
    return postgres.clone()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start functions for one test: serve(name, database_url, **environment)."""
    with ExitStack() as stack:
        yield lambda name, url, **environment: stack.enter_context(function(name, url, **environment))


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
        """Look into the database."""
        return query(self.database_url, sql, **parameters)

    def stored(self, user_id: str) -> list[Any]:
        """The user's rows in `metrics`, in order."""
        return self.query("SELECT * FROM metrics WHERE user_id = :user_id ORDER BY timestamp, metric_id", user_id=user_id)


@pytest.fixture(scope="session")
def stack(postgres: Postgres) -> Iterator[Stack]:
    """The functions that the tests share; each test registers users of its own."""
    url = postgres.clone()
    with function("ingest", url) as ingest, function("ingest_batch", url) as batch, function("users", url) as users:
        yield Stack(url, ingest, batch, users)
        for server in (ingest, batch, users):
            assert "internal error" not in server.log, server.log


@pytest.fixture
def metric(stack: Stack) -> dict[str, Any]:
    """A valid metric of a new user."""
    return {
        "user_id": stack.user(),
        "metric_type": "talked_time",
        "value": 12.34,
        "timestamp": "2024-08-08T12:34:56Z",
        "metric_id": str(uuid4()),
    }


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings for tests that call the library in this process, without a database."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@localhost/none")
    monkeypatch.setenv("ALLOW_ANONYMOUS", "true")
    settings.cache_clear()
    yield
    settings.cache_clear()


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in its canonical form."""
    return str(UUID(text)) == text
