"""Stores a batch of metrics, and accounts for every one of them."""

from dataclasses import dataclass
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any
from uuid import UUID

from metrics_ingest.errors import Fault, StatementRefused
from metrics_ingest.model.batch import Batch
from metrics_ingest.model.metric import MetricRow
from metrics_ingest.model.validation import MAX_LISTED, excerpt
from metrics_ingest.storage.nodes import nodes
from metrics_ingest.storage.operations import Commit, Outcome
from metrics_ingest.telemetry import telemetry


@dataclass(slots=True)
class Report:
    """What became of a batch: received = stored + duplicates + len(faults), except for a refused strict one."""

    received: int
    rows: list[MetricRow]  # the valid metrics
    stored: int
    duplicates: int
    faults: dict[int, list[Fault]]  # those of the others by position in the request, empty for the unlisted ones
    unlisted: int = 0

    @property
    def fault_count(self) -> int:
        """The number of all faults."""
        return self.unlisted + sum(map(len, self.faults.values()))

    @property
    def status(self) -> HTTPStatus:
        """200 none rejected, 422 nothing accepted, 207 some of each."""
        if not self.faults:
            return HTTPStatus.OK
        return HTTPStatus.MULTI_STATUS if self.stored or self.duplicates else HTTPStatus.UNPROCESSABLE_ENTITY

    @property
    def metric_id(self) -> str:
        """The id of the first valid metric."""
        text = self.rows[0][2].hex()  # faster than by a UUID
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


async def store(batch: Batch, *, strict: bool = False, timeout_s: float = 0) -> Report:
    """Store the valid metrics of a batch, or if `strict` all or nothing. Raise what Writer.write raises.

    `timeout_s` is how long to wait for the commit (0: WRITE_TIMEOUT_S).
    """
    commit = Commit.VALID_ITEMS
    if strict:  # with faults known already, the database is still asked for those that only it can find
        commit = Commit.DRY_RUN if batch.faults else Commit.ALL_OR_NOTHING
    outcomes = []
    if batch.rows:
        outcomes = await nodes().write(batch.rows, commit, timeout_s)
    if not outcomes and not batch.faults:
        _count(batch.received, 0)
        return Report(batch.received, batch.rows, batch.received, 0, {})
    rejected = [outcome for outcome in outcomes if outcome.kind != "duplicate"]
    faults, unlisted = dict(batch.faults), batch.unlisted
    for outcome in rejected:
        position = batch.positions[outcome.position]
        is_first = position not in faults
        found = faults.setdefault(position, [])
        if found or (is_first and len(faults) <= MAX_LISTED):
            found.append(_fault(outcome, batch.rows[outcome.position]))
        else:
            unlisted += 1
    if strict and faults:
        return Report(batch.received, batch.rows, 0, 0, faults, unlisted)
    duplicates = len(outcomes) - len(rejected)
    stored = batch.received - duplicates - len(faults)
    _count(stored, duplicates)
    return Report(batch.received, batch.rows, stored, duplicates, faults, unlisted)


def _count(stored: int, duplicates: int) -> None:
    if counted := telemetry():
        counted.accepted(stored, duplicates)


def _fault(outcome: Outcome, row: MetricRow) -> Fault:
    """Turn an outcome of the database into a fault of the metric."""
    user_id, _, metric_id, _, metric_type, value = row
    facts = outcome.facts
    match outcome.kind:
        case "unknown_user":
            field_name = "user_id"
            detail = f"user {UUID(bytes=user_id)} is not registered; POST /users/ registers a user"
        case "unknown_metric_type":
            field_name, detail = "metric_type", _unknown_type(metric_type, facts)
        case "value_out_of_range":
            field_name, detail = "value", f"{metric_type} must be {_range(facts)}, got {excerpt(value)}"
        case "metric_conflict":  # "before" may be in another request, because the writer merges requests
            field_name, detail = "metric_id", "this metric was sent before with another value, type or session"
        case unknown:
            raise StatementRefused(f"store_metrics returned the outcome {unknown!r:.100}")
    return Fault(outcome.kind, detail, field_name, str(UUID(bytes=metric_id)))


def _unknown_type(metric_type: str, facts: dict[str, Any]) -> str:
    """Say what to do about a metric type that is not accepted."""
    if facts["retired"]:
        return f"metric type {metric_type} is retired"
    alike = get_close_matches(metric_type, facts.get("alike") or (), cutoff=0.5)
    hint = f"is it {' or '.join(alike)}? " if alike else ""
    return f"metric type {metric_type} is not registered; {hint}`metrics-ingest type add {metric_type}` registers it"


def _range(facts: dict[str, Any]) -> str:
    """The range of a metric type in words; at least one bound is given."""
    if facts["flag"]:
        return "0 or 1"
    least, most = (bound if bound is None else f"{bound:.17g}" for bound in (facts["min"], facts["max"]))
    if least is None:
        return f"at most {most}"
    return f"at least {least}" if most is None else f"between {least} and {most}"
