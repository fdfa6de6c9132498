"""A valid metric, and a user to send it for."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from support.processes import query

TIMESTAMP = "2024-08-08T12:34:56Z"


def metric(user_id: str, metric_id: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return a metric with a metric_id of its own and the given changes; valid if the user is registered."""
    return {
        "user_id": user_id,
        "metric_type": "talked_time",
        "value": 12.34,
        "timestamp": TIMESTAMP,
        "metric_id": metric_id or str(uuid4()),
        **changes,
    }


def current(user_id: str, **changes: Any) -> dict[str, Any]:
    """Return such a metric of this moment."""
    return metric(user_id, **{"value": 1, "timestamp": datetime.now(UTC).isoformat(), **changes})


def register(database_url: str, user_id: str | None = None) -> str:
    """Insert a user directly into the database and return its id."""
    user_id = user_id or str(uuid4())
    query(database_url, "INSERT INTO users (user_id, name) VALUES (CAST(:user_id AS uuid), 'Greg')", user_id=user_id)
    return user_id
