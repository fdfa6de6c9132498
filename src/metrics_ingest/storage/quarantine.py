"""Keeps rejected metrics for a while, so that an operator can look at them and store them once the cause is fixed.

See `metrics-ingest rejected`. The answer waits for this, because nothing may be left to do afterwards, but not longer
than TIMEOUT_S. The rate is bounded, so that a flood does not fill the disk, and a failure here changes no answer.
"""

import asyncio
import base64
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import to_json

from metrics_ingest.errors import Fault, IngestError, RequestRefused
from metrics_ingest.model import metric
from metrics_ingest.model.validation import RepeatedFields
from metrics_ingest.settings import settings
from metrics_ingest.storage.operations import Operation, execute_blocking
from metrics_ingest.storage.refusals import refusals
from metrics_ingest.storage.writer import writer

PAYLOAD_BYTES = 8_192
ROW_BYTES = 1_000  # the most of a row without its payload
DETAIL_CHARACTERS = 500
BYTES_PER_DAY = 67_108_864  # of one process: 6 GB in the three months for which they are kept
TIMEOUT_S = 0.25
UNLISTED = "unlisted"  # in place of a code, of metrics whose faults were only counted
REPLAY_BATCH = 1_000
REPLAY_SKEW_S = 86_400  # the default of MAX_FUTURE_SKEW_S

NEXT = """
    SELECT received_at, rejected_id, metric_id, keyed, payload, payload_bytes FROM rejected_metrics
    {where} AND (received_at, rejected_id) > (CAST(:at AS timestamptz), CAST(:id AS uuid))
    ORDER BY received_at, rejected_id LIMIT {limit} FOR UPDATE SKIP LOCKED
"""
DELETE = """
    DELETE FROM rejected_metrics USING unnest(CAST(:at AS timestamptz[]), CAST(:ids AS uuid[])) AS done (at, id)
    WHERE received_at = done.at AND rejected_id = done.id
"""

UUID_SPELLED = re.compile(rb"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
ESCAPED = re.compile(rb"\\u00([2-7][0-9a-fA-F])")  # an ASCII character in JSON
LONGEST_UUID = 6 * 36  # bytes, when every character is escaped

logger = logging.getLogger(__name__)


class Rejected(NamedTuple):
    """What was refused of a request: the faults of its metrics by their position in `sent` (see Batch)."""

    faults: Mapping[int, Sequence[Fault]]
    sent: Sequence[Any]


class Kept(NamedTuple):
    """A rejected metric as it was kept."""

    received_at: datetime | str
    rejected_id: UUID
    metric_id: UUID | None = None  # the identity in the reply to the sender
    keyed: bool = False  # that identity was computed from the sender's Idempotency-Key, unless the payload has its own
    payload: bytes = b""
    payload_bytes: int = 0  # of what was sent; larger than `payload` when only its beginning was kept


FIRST = Kept("-infinity", UUID(int=0))  # what precedes all others


class Allowance:
    """A token bucket: `burst` at once, `per_s` in the long run. And a number of bytes for each day, in UTC."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._day = 0.0
        self._bytes = 0
        self._left = burst
        self._updated = time.monotonic()

    def take(self, wanted: int) -> int:
        """Take up to `wanted` tokens; return how many."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._updated) * self._per_s)
        self._updated = now
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted

    def spend(self, size: int) -> bool:
        """Take so many of the day's bytes. Return whether there were as many; log the first time that there are not."""
        today = time.time() // 86_400
        if today != self._day:
            self._day, self._bytes = today, BYTES_PER_DAY
        if size > self._bytes:
            if self._bytes:
                logger.warning("rejected metrics are not kept until midnight UTC: %s bytes are used up", BYTES_PER_DAY)
            self._bytes = 0
            return False
        self._bytes -= size
        return True


@cache
def allowance() -> Allowance:
    """Return this process's allowance, as REJECTED_PER_S and REJECTED_BURST say."""
    return Allowance(settings().rejected_per_s, settings().rejected_burst)


async def keep(route: str, key_name: str | None, rejected: Rejected, *, keyed: bool) -> None:
    """Count the rejected metrics of a request, and keep as many as the allowance permits. Raise nothing.

    `keyed` says whether the request had an Idempotency-Key.
    """
    faults, sent = rejected
    if not settings().keep_rejected:
        return
    refusals().add(route, key_name, Counter(found[0].code if found else UNLISTED for found in faults.values()))
    described = [position for position in faults if faults[position]]  # all but the unlisted ones
    if not (granted := allowance().take(len(described))):
        return
    positions = sorted(described)[:granted]
    try:
        rows = [_row(route, key_name, _payload(sent[position]), faults[position], keyed) for position in positions]
        if not allowance().spend(sum(ROW_BYTES + len(row["payload"]) for row in rows)):
            return
        async with asyncio.timeout(TIMEOUT_S):
            await writer().write(Operation.KEEP_REJECTED, rows, timeout_s=TIMEOUT_S)
    except (TimeoutError, IngestError, ValueError, LookupError) as error:
        reason = getattr(error, "reason", type(error).__name__)
        logger.warning("%s rejected metrics are not kept: %s", len(positions), reason)


def _row(route: str, key_name: str | None, payload: bytes, faults: Sequence[Fault], keyed: bool) -> dict[str, Any]:
    """One item of Operation.KEEP_REJECTED."""
    metric_id = next((fault.metric_id for fault in faults if fault.metric_id), None)
    return {
        "route": route,
        "key_name": key_name,
        "codes": list(dict.fromkeys(fault.code for fault in faults)),
        "detail": faults[0].detail[:DETAIL_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "metric_id": metric_id,
        "keyed": keyed and metric_id is not None,
        "payload": base64.b64encode(payload[:PAYLOAD_BYTES]).decode(),
        "payload_bytes": len(payload),
        "named_ids": _named_ids(payload, faults[0].detail),
    }


def _named_ids(payload: bytes, detail: str) -> list[str]:
    """The UUIDs in what is kept, however they are spelled, also one that is cut in two: an erasure looks for them."""
    texts = (
        payload[: PAYLOAD_BYTES + LONGEST_UUID],
        detail[: DETAIL_CHARACTERS + LONGEST_UUID].encode(errors="replace"),
    )
    text = ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), b"\n".join(texts))
    return sorted({str(UUID(found.decode())) for found in UUID_SPELLED.findall(text)})


def _payload(sent: Any) -> bytes:
    """The bytes of a line or body as they are, or an item of a JSON array serialized again, with what it repeats."""
    if isinstance(sent, bytes):
        return sent
    if isinstance(sent, RepeatedFields):
        return b"{%b}" % b",".join(to_json({name: value})[1:-1] for name, value in sent.pairs)
    return to_json(sent, inf_nan_mode="constants")


def replay_after(connection: Any, last: Kept, where: str, counts: Counter[str], *, force: bool) -> Kept | None:
    """Store what is valid now among the next REPLAY_BATCH kept metrics after `last` that meet the WHERE clause.

    Without `force`, leave those whose identity the sender did not choose (counted as `needs_force`): it may have sent
    them again, corrected or not, and they would be stored twice. Remove those that are stored now, or were before. Add
    to `counts` how many were `stored`, how many `duplicates`, and of the others how many by error code. Return the last
    metric that was read, None when there was none. Work in the transaction of a blocking connection, which locks the
    rows: a second replay skips them. Raise pg8000's errors.
    """
    sql = NEXT.format(where=where, limit=REPLAY_BATCH)
    kept = [Kept(*values) for values in connection.run(sql, at=last.received_at, id=last.rejected_id)]
    metrics: list[metric.MetricRow] = []
    done: dict[int, Kept] = {}  # by the position of their metric
    for each in kept:
        try:
            row, sender_has_id = _read(each)
        except RequestRefused as refused:
            counts[refused.code] += 1
            continue
        if sender_has_id or force:
            done[len(metrics)] = each
            metrics.append(row)
        else:
            counts["needs_force"] += 1
    if metrics:
        for outcome in execute_blocking(connection, Operation.STORE_METRICS, metrics):
            if outcome.kind == "duplicate":
                counts["duplicates"] += 1
                counts["stored"] -= 1
            elif done.pop(outcome.position, None):
                counts[outcome.kind] += 1
        counts["stored"] += len(done)
        times, ids = [each.received_at for each in done.values()], [each.rejected_id for each in done.values()]
        connection.run(DELETE, at=times, ids=ids)
    return kept[-1] if kept else None


def _read(kept: Kept) -> tuple[metric.MetricRow, bool]:
    """Return a kept row's metric, ready to be stored, and whether its identity is one that the sender chose.

    Raise RequestRefused with its faults.
    """
    if kept.payload_bytes > len(kept.payload):
        raise RequestRefused(Fault("payload_too_large", "only the beginning of the payload was kept"))
    item = metric.READER.read(kept.payload)
    sender_has_id = kept.keyed or item.get("metric_id") is not None
    if not item.get("metric_id"):  # the identity in the reply to the sender, who may send the metric again with it
        item["metric_id"] = kept.metric_id
    rows, faults = metric.complete([item], (0,), str(kept.rejected_id), REPLAY_SKEW_S)
    if faults:
        raise RequestRefused(*faults[0])
    return rows[0], sender_has_id
