"""Structured logs: one line of JSON per event, with the fields that Cloud Logging knows.

No line holds a value from a payload, a key or a password. Of an exception only the type and the stack are logged,
because its message may quote the value that caused it.
"""

import asyncio
import logging
import os
import re
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic_core import to_json

from metrics_ingest import __version__
from metrics_ingest.settings import Settings

# VERSION-TRACE-SPAN-FLAGS, to which later versions may add, and TRACE/SPAN;o=OPTIONS, where SPAN is a decimal number.
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
CLOUD_TRACE = re.compile(rb"(?!0{32})([0-9a-fA-F]{32})(?:/([0-9]{1,20}))?(?:;.*)?")
TALLY_S = 10.0  # at most one line of a Tally in this time

logger = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: severity, time, message, logger, and the fields of extra["facts"]."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        entry: dict[str, Any] = {
            "severity": record.levelname,
            "time": datetime.fromtimestamp(record.created, UTC),
            "message": record.getMessage(),
            "logger": record.name,
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1]:
            entry["exception"] = type(record.exc_info[1]).__name__
            entry["stack_trace"] = "".join(traceback.format_tb(record.exc_info[2]))
        return to_json(entry, fallback=str).decode()


def trace(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the fields that join a line to its request's trace in Cloud Logging, from a request's header fields.

    From `traceparent` (W3C Trace Context), else from Google's `X-Cloud-Trace-Context`; empty where neither is valid.
    """
    sent = dict(fields)
    if found := TRACEPARENT.fullmatch(sent.get(b"traceparent", b"").strip()):
        trace_id, span_id = found[1].decode(), found[2].decode()
    elif found := CLOUD_TRACE.fullmatch(sent.get(b"x-cloud-trace-context", b"").strip()):
        trace_id, span_id = found[1].decode().lower(), f"{int(found[2] or 0) & 0xFFFF_FFFF_FFFF_FFFF:016x}"
    else:
        return {}
    project = os.environ.get("GOOGLE_CLOUD_PROJECT")
    name = f"projects/{project}/traces/{trace_id}" if project else trace_id
    span = {"logging.googleapis.com/spanId": span_id} if span_id.strip("0") else {}
    return {"logging.googleapis.com/trace": name, **span}


class Tally:
    """A rate-limited warning with a count.

    The first event is logged at once; further ones at most every TALLY_S seconds, in one line with their number.
    """

    def __init__(self, source: logging.Logger, message: str) -> None:
        self._logger = source
        self._message = message
        self._facts: dict[str, Any] = {}
        self._count = 0
        self._planned = False

    def add(self, **facts: Any) -> None:
        """Count an event. The line holds the `facts` of the latest. Call this in the event loop."""
        self._count += 1
        self._facts = facts
        if not self._planned:
            self._log()

    def _log(self) -> None:
        self._planned = self._count > 0
        if self._planned:
            self._logger.warning(self._message, extra={"facts": {"count": self._count, **self._facts}})
            self._count = 0
            asyncio.get_running_loop().call_later(TALLY_S, self._log)


@cache
def start(settings: Settings) -> None:
    """Configure logging and log the settings, without secrets. Once per process, however many functions it runs."""
    configure(settings.log_level)
    safe = asdict(settings) | {"api_keys": [key.name for key in settings.api_keys]}
    safe["database"]["password"] = "set" if settings.database.password else "not set"
    logger.info("metrics-ingest %s starts", __version__, extra={"facts": {"settings": safe}})


def configure(level: str) -> None:
    """Format all lines as JSON, and set the level of our loggers.

    Call this again at the first request, because functions-framework configures logging again after it has imported the
    function: it disables loggers that it does not know and, with LOG_EXECUTION_ID, adds a handler which adds ids.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    for handler in root.handlers:
        handler.setFormatter(JsonFormatter())
    for name, ours in root.manager.loggerDict.items():
        if name.startswith("metrics_ingest.") and isinstance(ours, logging.Logger):
            ours.disabled = False
    logging.getLogger("metrics_ingest").setLevel(level)
