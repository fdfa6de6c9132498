"""A running ingest_otlp for the tests of a module."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.metrics import register
from support.processes import Postgres, Server, function, query


@dataclass(frozen=True)
class Otlp:
    """The function, and its database."""

    server: Server
    database_url: str

    @property
    def url(self) -> str:
        """The function's base URL."""
        return self.server.url

    def user(self) -> str:
        """Register a new user and return its id."""
        return register(self.database_url)

    def rows(self, user_id: str) -> list[dict[str, Any]]:
        """The user's metrics in order, without received_at, ids as text."""
        found = query(
            self.database_url,
            "SELECT row_to_json(found) FROM (SELECT metric_type, value, timestamp, session_id, metric_id FROM metrics"
            " WHERE user_id = CAST(:user_id AS uuid) ORDER BY timestamp, metric_type, metric_id) AS found",
            user_id=user_id,
        )
        return [row for (row,) in found]

    def values(self, user_id: str) -> list[tuple[str, float]]:
        """The types and values of the user's metrics, sorted."""
        return sorted((row["metric_type"], row["value"]) for row in self.rows(user_id))

    def kept(self, user_id: str) -> list[tuple[list[str], str, dict[str, Any]]]:
        """Codes, detail and JSON metric of the user's rejected metrics."""
        found = query(
            self.database_url,
            "SELECT codes, detail, convert_from(payload, 'UTF8')::json FROM rejected_metrics"
            " WHERE route = 'ingest_otlp' AND convert_from(payload, 'UTF8') LIKE '%' || :user_id || '%'"
            " ORDER BY received_at, rejected_id",
            user_id=user_id,
        )
        return [(codes, detail, metric) for codes, detail, metric in found]


@pytest.fixture(scope="module")
def otlp(postgres: Postgres) -> Iterator[Otlp]:
    url = postgres.clone()
    with function("ingest_otlp", url) as server:
        yield Otlp(server, url)
        assert "internal error" not in server.log, server.log
