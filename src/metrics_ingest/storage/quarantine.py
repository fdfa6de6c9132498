"""Keeps rejected metrics for a while, so that an operator can look at them and store them once the cause is fixed.

See `metrics-ingest rejected`. The answer waits for this, because nothing may be left to do afterwards, but not longer
than TIMEOUT_S. The rate is bounded, so that a flood does not fill the disk, and a failure here changes no answer.
"""

import asyncio
import base64
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from metrics_ingest.errors import Fault, IngestError
from metrics_ingest.model.batch import filled_lines
from metrics_ingest.settings import settings
from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.writer import writer

PAYLOAD_BYTES = 8_192
DETAIL_CHARACTERS = 500
PER_S, BURST = 20.0, 100.0  # rejected metrics of one process
TIMEOUT_S = 0.25

logger = logging.getLogger(__name__)

Faults = Mapping[Any, Sequence[Fault]]  # by the metric's position in the request, or of the whole body by None


class Allowance:
    """A token bucket: BURST at once, PER_S in the long run."""

    def __init__(self) -> None:
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


ALLOWANCE = Allowance()  # this process's


async def keep(route: str, key_name: str | None, body: bytes, ndjson: bool, faults: Faults) -> None:
    """Keep the rejected metrics of a request, as many as ALLOWANCE permits. Raise nothing."""
    if not settings().keep_rejected or not (granted := ALLOWANCE.take(len(faults))):
        return
    positions = sorted(faults)[:granted]
    try:
        payloads = [body] if None in faults else _payloads(body, ndjson, positions)
        sent = zip(positions, payloads, strict=True)
        rows = [_row(route, key_name, payload, faults[position]) for position, payload in sent]
        async with asyncio.timeout(TIMEOUT_S):
            await writer().write(Operation.KEEP_REJECTED, rows, timeout_s=TIMEOUT_S)
    except (TimeoutError, IngestError, ValueError, LookupError) as error:
        reason = getattr(error, "reason", type(error).__name__)
        logger.warning("%s rejected metrics are not kept: %s", len(positions), reason)


def _row(route: str, key_name: str | None, payload: bytes, faults: Sequence[Fault]) -> dict[str, Any]:
    """One item of Operation.KEEP_REJECTED."""
    return {
        "route": route,
        "key_name": key_name,
        "codes": list(dict.fromkeys(fault.code for fault in faults)),
        "detail": faults[0].detail[:DETAIL_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "metric_id": next((fault.metric_id for fault in faults if fault.metric_id), None),
        "payload": base64.b64encode(payload[:PAYLOAD_BYTES]).decode(),
        "payload_bytes": len(payload),
    }


def _payloads(body: bytes, ndjson: bool, positions: Sequence[int]) -> list[bytes]:
    """What was sent at each position: the bytes of a line, or an item of a JSON document serialized again."""
    if ndjson:
        lines = list(filled_lines(body))
        return [lines[position] for position in positions]
    document = from_json(body)
    items = document["metrics"] if isinstance(document, dict) else document
    return [to_json(items[position], inf_nan_mode="constants") for position in positions]
