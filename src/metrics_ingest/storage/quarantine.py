"""Keeps rejected metrics for a while, so that an operator can look at them and store them once the cause is fixed.

See `metrics-ingest rejected`. The answer waits for this, because nothing may be left to do afterwards, but not longer
than TIMEOUT_S. The rate is bounded, so that a flood does not fill the disk, and a failure here changes no answer.
"""

import asyncio
import base64
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from metrics_ingest.errors import Fault, IngestError
from metrics_ingest.settings import settings
from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.writer import writer

PAYLOAD_BYTES = 8_192
ROW_BYTES = 1_000  # the most of a row without its payload
DETAIL_CHARACTERS = 500
PER_S, BURST = 20.0, 100.0  # rejected metrics of one process
BYTES_PER_DAY = 67_108_864  # of one process: 6 GB in the three months for which they are kept
TIMEOUT_S = 0.25

logger = logging.getLogger(__name__)

Faults = Mapping[Any, Sequence[Fault]]  # by the metric's position in the request; None is the whole body


class Allowance:
    """A token bucket: BURST at once, PER_S in the long run. And a number of bytes for each day, in UTC."""

    def __init__(self) -> None:
        self._day = 0.0
        self._bytes = 0
        self._left = BURST
        self._updated = time.monotonic()

    def take(self, wanted: int) -> int:
        """Take up to `wanted` tokens; return how many."""
        now = time.monotonic()
        self._left = min(BURST, self._left + (now - self._updated) * PER_S)
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
                logger.warning("rejected metrics are not kept until midnight UTC: %d bytes are used up", BYTES_PER_DAY)
            self._bytes = 0
            return False
        self._bytes -= size
        return True


@cache
def allowance() -> Allowance:
    """This process's allowance."""
    return Allowance()


async def keep(route: str, key_name: str | None, body: bytes, ndjson: bool, faults: Faults) -> None:
    """Keep the rejected metrics of a request, as many as the allowance permits. Raise nothing."""
    described = [position for position in faults if faults[position]]  # all but the unlisted ones
    if not settings().keep_rejected or not (granted := allowance().take(len(described))):
        return
    positions = sorted(described, key=lambda position: -1 if position is None else position)[:granted]
    try:
        rows = [
            _row(route, key_name, payload, faults[position])
            for position, payload in zip(positions, _payloads(body, ndjson, positions), strict=True)
        ]
        if not allowance().spend(sum(ROW_BYTES + len(row["payload"]) for row in rows)):
            return
        async with asyncio.timeout(TIMEOUT_S):
            await writer().write(Operation.KEEP_REJECTED, rows, timeout_s=TIMEOUT_S)
    except (TimeoutError, IngestError, ValueError, LookupError) as error:
        reason = getattr(error, "reason", type(error).__name__)
        logger.warning("%d rejected metrics are not kept: %s", len(positions), reason)


def _row(route: str, key_name: str | None, payload: bytes, faults: Sequence[Fault]) -> dict[str, Any]:
    """One item of Operation.KEEP_REJECTED."""
    return {
        "route": route,
        "key_name": key_name,
        "codes": list(dict.fromkeys(fault.code for fault in faults)),
        "detail": faults[0].detail[:DETAIL_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "metric_id": next((fault.metric_id for fault in faults if fault.metric_id and _is_uuid(fault.metric_id)), None),
        "payload": base64.b64encode(payload[:PAYLOAD_BYTES]).decode(),
        "payload_bytes": len(payload),
    }


def _payloads(body: bytes, ndjson: bool, positions: Sequence[int | None]) -> Iterator[bytes]:
    """What was sent at each position: the bytes of a line, or an item of a JSON document serialized again."""
    items: Any = None
    for position in positions:
        if position is None:
            yield body
        elif ndjson:
            items = items or [line for line in map(bytes.strip, body.split(b"\n")) if line]
            yield items[position]
        else:
            if items is None:
                items = from_json(body)
                items = items["metrics"] if isinstance(items, dict) else items
            yield to_json(items[position], inf_nan_mode="constants")


def _is_uuid(text: str) -> bool:
    try:
        return bool(UUID(text))
    except ValueError:
        return False
