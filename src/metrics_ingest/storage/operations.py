"""What the database is asked to do, and what it answers: the functions of migrations/functions/ and their results."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from pydantic_core import to_json

from metrics_ingest.storage import pgwire


class Operation(Enum):
    """What a connection can be asked to do with a list of items."""

    STORE_METRICS = "store_metrics"  # of model.metric.Row
    REGISTER_USERS = "register_users"  # of {"user_id", "name", "email"}
    KEEP_REJECTED = "keep_rejected"  # of what quarantine.py makes of them
    PING = "nothing"


PING, BEGIN, COMMIT, ROLLBACK = map(pgwire.statement, ("SELECT NULL", "BEGIN", "COMMIT", "ROLLBACK"))
STORE_METRICS = f"SELECT {Operation.STORE_METRICS.value}($1, $2, $3, $4, $5, $6, $7)"


class Commit(Enum):
    """When the items of one call stay stored."""

    ALWAYS = 1
    ALL_STORED = 2  # none, when an item is rejected
    NEVER = 3  # a rehearsal, for the faults it finds


class Outcome(NamedTuple):
    """What became of the item at `position` (from 0). Items that were simply stored have none.

    `kind` is "duplicate", an error code, or for users "registered"; `facts` is what the database says about it.
    """

    position: int
    kind: str
    facts: dict[str, Any]


def request(operation: Operation, items: Sequence[Any], unseen: Sequence[bool]) -> bytes:
    """The statement that does `operation` with the items; `unseen` as in SeenSessions.unseen."""
    if operation is Operation.PING:
        return PING
    if operation is not Operation.STORE_METRICS:
        return pgwire.statement(f"SELECT {operation.value}($1)", [pgwire.json(to_json(items))])
    user_ids, timestamps, metric_ids, session_ids, metric_types, values = zip(*items, strict=True)
    return pgwire.statement(STORE_METRICS, [
        pgwire.uuids(user_ids),
        pgwire.timestamps(timestamps),
        pgwire.uuids(metric_ids),
        pgwire.uuids(session_ids),
        pgwire.texts(metric_types),
        pgwire.floats(values),
        pgwire.booleans(unseen),
    ])  # fmt: skip


def outcomes_of(answer: Sequence[dict[str, Any]] | None) -> list[Outcome]:
    return sorted(
        (Outcome(facts["position"] - 1, facts.get("outcome", "registered"), facts) for facts in answer or ()),
        key=lambda outcome: outcome.position,
    )
