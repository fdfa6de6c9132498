"""What the database can be asked to do: the functions of migrations/functions/, and their results."""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple
from zlib import crc32

from pg8000.exceptions import InterfaceError
from pydantic_core import to_json

from metrics_ingest.storage import pgwire
from metrics_ingest.storage.driver import DatabaseSocket
from metrics_ingest.storage.pgwire import IDLE, IN_TRANSACTION, Statement


class Operation(Enum):
    """What to do with a list of items, and its SQL."""

    STORE_METRICS = "SELECT public.store_metrics($1, $2, $3, $4, $5, $6, $7)"  # items are model.metric.MetricRow
    STORE_NEAR = "SELECT public.store_metrics_near($1, $2, $3, $4, $5, $6, $7, $8)"  # the same, on one node of Citus
    LOCATE_USERS = "SELECT public.locate_users($1)"  # items are ids of users; only on Citus
    REGISTER_USERS = "SELECT public.register_users($1)"  # items are {"user_id", "name", "email"}
    KEEP_REJECTED = "SELECT public.keep_rejected($1)"  # items as quarantine.py makes them
    COUNT_REJECTED = "SELECT public.count_rejected($1)"  # items as refusals.py makes them
    DESCRIBE_TYPES = "SELECT public.describe_types($1)"  # items are names of metric types
    PING = "SELECT NULL"  # no items


class Commit(Enum):
    """Which items stay stored when some of them are rejected."""

    VALID_ITEMS = auto()  # all but the rejected
    ALL_OR_NOTHING = auto()  # none
    DRY_RUN = auto()  # none in any case: only the outcomes are wanted


STORES = (Operation.STORE_METRICS, Operation.STORE_NEAR)
BEGIN, COMMIT, ROLLBACK = map(pgwire.no_rows, ("BEGIN", "COMMIT", "ROLLBACK"))
# The encoders of the parameters of store_metrics: the columns of MetricRow, then SeenSessions.unseen.
ENCODERS: tuple[Callable[[Any], bytes], ...] = (
    pgwire.uuids, pgwire.timestamps, pgwire.uuids, pgwire.uuids, pgwire.texts, pgwire.floats, pgwire.booleans
)  # fmt: skip


class Outcome(NamedTuple):
    """What became of the item at `position` (from 0). Items that were simply stored have none."""

    position: int
    kind: str  # "duplicate", an error code, or for users "registered"
    facts: dict[str, Any]  # what the database says about it


def name(operation: Operation) -> bytes:
    """The name of its statement: the same SQL has the same one in every version, also behind a pooler."""
    return b"metrics-ingest %08x" % crc32(operation.value.encode())


def statement(
    operation: Operation, items: Sequence[Any], unseen: Sequence[bool], name: bytes = b"", *, parse: bool = True
) -> Statement:
    """The statement that does `operation` with the items; `unseen` as in SeenSessions.unseen, the rest in pgwire."""
    if operation not in STORES:
        return pgwire.one_row(operation.value, [to_json(items)] if items else ())
    columns = zip(ENCODERS, (*zip(*items, strict=True), unseen), strict=True)
    parameters = [encode(column) for encode, column in columns]
    if operation is Operation.STORE_NEAR:
        parameters.insert(0, items[0][0])  # it runs where this user is
    return pgwire.one_row(operation.value, parameters, name, parse=parse)


def outcomes(values: Sequence[Any], items: Sequence[Any]) -> list[Outcome]:
    """The outcomes by position, from NULL or an array with positions from 1. Raise InterfaceError for anything else."""
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


def execute_blocking(connection: Any, operation: Operation, items: Sequence[Any]) -> list[Outcome]:
    """Do as Lane.execute on a connection of driver.connect, in its transaction. Raise pg8000's errors and OSError."""
    request = statement(operation, items, [True] * len(items))
    return outcomes(DatabaseSocket(connection).exchange([request], IDLE + IN_TRANSACTION), items)
