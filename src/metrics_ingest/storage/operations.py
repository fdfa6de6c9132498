"""What the database can be asked to do: the functions of migrations/functions/, and their results."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

from pg8000.exceptions import InterfaceError
from pydantic_core import to_json

from metrics_ingest.storage import pgwire
from metrics_ingest.storage.pgwire import Statement


class Operation(Enum):
    """What to do with a list of items. The value is the name of the SQL function."""

    STORE_METRICS = "store_metrics"  # items are model.metric.MetricRow
    REGISTER_USERS = "register_users"  # items are {"user_id", "name", "email"}
    KEEP_REJECTED = "keep_rejected"  # items as quarantine.py makes them
    DESCRIBE_TYPES = "describe_types"  # items are names of metric types
    PING = ""  # no items, no function


class Commit(Enum):
    """Which items stay stored when some of them are rejected."""

    VALID_ITEMS = auto()  # all but the rejected
    ALL_OR_NOTHING = auto()  # none
    DRY_RUN = auto()  # none in any case: only the outcomes are wanted


PING = pgwire.query("SELECT NULL")
BEGIN, COMMIT, ROLLBACK = map(pgwire.command, ("BEGIN", "COMMIT", "ROLLBACK"))
STORE_METRICS = f"SELECT {Operation.STORE_METRICS.value}($1, $2, $3, $4, $5, $6, $7)"


class Outcome(NamedTuple):
    """What became of the item at `position` (from 0). Items that were simply stored have none.

    `kind` is "duplicate", an error code, or for users "registered"; `facts` is what the database says about it.
    """

    position: int
    kind: str
    facts: dict[str, Any]


def statement(operation: Operation, items: Sequence[Any], unseen: Sequence[bool]) -> Statement:
    """The statement that does `operation` with the items; `unseen` as in SeenSessions.unseen."""
    if operation is Operation.PING:
        return PING
    if operation is not Operation.STORE_METRICS:
        return pgwire.query(f"SELECT {operation.value}($1)", [pgwire.json(to_json(items))])
    user_ids, timestamps, metric_ids, session_ids, metric_types, values = zip(*items, strict=True)
    return pgwire.query(STORE_METRICS, [
        pgwire.uuids(user_ids),
        pgwire.timestamps(timestamps),
        pgwire.uuids(metric_ids),
        pgwire.uuids(session_ids),
        pgwire.texts(metric_types),
        pgwire.floats(values),
        pgwire.booleans(unseen),
    ])  # fmt: skip


def outcomes(values: Sequence[Any], items: Sequence[Any]) -> list[Outcome]:
    """The outcomes of the items by position. The statement has returned NULL, or an array with positions from 1.

    Raise InterfaceError for anything else.
    """
    (result,) = values
    if result is None:
        return []
    try:
        found = [Outcome(facts["position"] - 1, facts.get("outcome", "registered"), facts) for facts in result]
        found.sort(key=lambda outcome: outcome.position)
        if found and not 0 <= found[0].position <= found[-1].position < len(items):
            raise ValueError("a position that is not in the batch")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InterfaceError(f"the function's result is not understood: {type(error).__name__}: {error}") from error
    return found
