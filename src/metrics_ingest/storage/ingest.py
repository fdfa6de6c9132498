"""Storing a batch of metrics, and accounting for every one of them."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import UUID

from metrics_ingest.errors import Fault
from metrics_ingest.model.batch import Batch
from metrics_ingest.model.metric import Row, shown
from metrics_ingest.storage.operations import Commit, Operation, Outcome
from metrics_ingest.storage.writer import writer


@dataclass(slots=True)
class Report:
    """What became of a batch: received = stored + duplicates + len(faults), but for a refused strict one."""

    received: int
    rows: list[Row]
    stored: int
    duplicates: int
    faults: dict[int, list[Fault]] = field(default_factory=dict)

    @property
    def status(self) -> HTTPStatus:
        """200 none rejected, 422 nothing accepted, 207 some of each."""
        if not self.faults:
            return HTTPStatus.OK
        return HTTPStatus.MULTI_STATUS if self.stored or self.duplicates else HTTPStatus.UNPROCESSABLE_ENTITY


async def store(batch: Batch, *, strict: bool = False) -> Report:
    """Store what is well-formed and account for all; strictly, store everything or nothing.

    Raise what Writer.write raises.
    """
    commit = Commit.ALWAYS
    if strict:  # with faults already known, the database is still asked for those that only it can find
        commit = Commit.NEVER if batch.faults else Commit.ALL_STORED
    outcomes = await writer().write(Operation.STORE_METRICS, batch.rows, commit) if batch.rows else []
    duplicates = 0
    faults = batch.faults
    for outcome in outcomes:
        if outcome.kind == "duplicate":
            duplicates += 1
        else:
            fault = _fault(outcome, batch.rows[outcome.position])
            faults.setdefault(batch.positions[outcome.position], []).append(fault)
    if strict and faults:
        return Report(batch.received, batch.rows, 0, 0, faults)
    return Report(batch.received, batch.rows, batch.received - duplicates - len(faults), duplicates, faults)


def _fault(outcome: Outcome, row: Row) -> Fault:
    """What the database found wrong, in words."""
    user_id, _, metric_id, _, metric_type, value = row
    facts = outcome.facts
    if outcome.kind == "unknown_user":
        field_name, detail = "user_id", f"user {UUID(bytes=user_id)} is not registered"
    elif outcome.kind == "unknown_metric_type":
        field_name, detail = (
            "metric_type",
            f"metric type {metric_type} is {'retired' if facts['retired'] else 'not registered'}",
        )
    elif outcome.kind == "value_out_of_range":
        field_name, detail = "value", f"{metric_type} must be {_range(facts)}, got {shown(value)}"
    else:
        # "Earlier" may be in another request: the writer merges what waits.
        field_name, detail = "metric_id", "this metric was sent before with another value, type or session"
    return Fault(outcome.kind, detail, field_name, str(UUID(bytes=metric_id)))


def _range(facts: dict[str, Any]) -> str:
    least, most = (bound if bound is None else f"{bound:.17g}" for bound in (facts["min"], facts["max"]))
    if facts["flag"]:
        return "0 or 1"
    if least is None:
        return f"at most {most}"
    return f"at least {least}" if most is None else f"between {least} and {most}"
