"""Counts all rejected metrics in the database, also those that quarantine.py does not keep.

The counts of a process are written every few seconds, apart from requests. What a process has not written when it is
killed is missing from them.
"""

import asyncio
import logging
from collections import Counter
from functools import cache

from metrics_ingest.errors import IngestError
from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.writer import writer

WRITE_AFTER_S = 2.0
TIMEOUT_S = 5.0
MAX_COUNTS = 1_000  # different ones that wait to be written, while the database is away

logger = logging.getLogger(__name__)


class Refusals:
    """The counts of a process that are not in the database yet, by function, key name and code."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._planned = False
        self._writing: asyncio.Task[None] | None = None

    def add(self, route: str, key_name: str | None, codes: Counter[str]) -> None:
        """Count rejected metrics, by the code of each one's first fault. Call this in the event loop."""
        for code, count in codes.items():
            if len(self._counts) < MAX_COUNTS or (route, key_name or "", code) in self._counts:
                self._counts[route, key_name or "", code] += count
        self._plan()

    def _plan(self) -> None:
        if self._counts and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(WRITE_AFTER_S, self._start)

    def _start(self) -> None:
        self._planned = False
        self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        counts, self._counts = self._counts, Counter()
        rows = [
            {"route": route, "key_name": key_name, "code": code, "rejected": count}
            for (route, key_name, code), count in counts.items()
        ]
        try:
            await writer().write(Operation.COUNT_REJECTED, rows, timeout_s=TIMEOUT_S)
        except IngestError as error:  # they may be counted twice, if only the answer was lost: better than not at all
            logger.debug("rejected metrics are counted later: %s", type(error).__name__)
            self._counts.update(counts)
            self._plan()


@cache
def refusals() -> Refusals:
    """Return the counts of this process. Call this from a request, because they belong to the running loop."""
    return Refusals()
