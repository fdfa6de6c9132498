"""Structured logs: an event is one line of JSON, in the fields that Cloud Logging knows.

No line holds a value from a payload, a key or a password: of an exception only the type and the place are told, since
its message may quote what it stumbled over.
"""

import asyncio
import logging
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic_core import to_json

from metrics_ingest import __version__
from metrics_ingest.settings import Settings

TALLY_S = 10.0

logger = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: severity, time, message, logger, and what was given as `extra={"facts": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
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


class Tally:
    """A warning that many requests may give cause for: said at once, then at most every TALLY_S, with their count."""

    def __init__(self, source: logging.Logger, message: str) -> None:
        self._logger = source
        self._message = message
        self._facts: dict[str, Any] = {}
        self._count = 0
        self._planned = False

    def add(self, **facts: Any) -> None:
        """One more. Of the facts the latest are told."""
        self._count += 1
        self._facts = facts
        if not self._planned:
            self._say()

    def _say(self) -> None:
        self._planned = self._count > 0
        if self._planned:
            self._logger.warning(self._message, extra={"facts": {"count": self._count, **self._facts}})
            self._count = 0
            asyncio.get_running_loop().call_later(TALLY_S, self._say)


@cache
def start(settings: Settings) -> None:
    """Set the process's logging up, and say what it runs with. Once a process, whatever functions it holds."""
    configure(settings.log_level)
    shown = asdict(settings) | {"api_keys": [key.name for key in settings.api_keys]}
    shown["database"]["password"] = "set" if settings.database.password else "not set"
    logger.info("metrics-ingest %s starts", __version__, extra={"facts": {"settings": shown}})


def configure(level: str) -> None:
    """Make all lines JSON, and ours those of the level and above.

    With LOG_EXECUTION_ID functions-framework sets up a handler of its own, which adds ids to lines of JSON. It does so
    again when it has imported the function, and that disables the loggers that it does not know.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    for handler in root.handlers:
        handler.setFormatter(JsonFormatter())
    for name, known in root.manager.loggerDict.items():
        if name.startswith("metrics_ingest.") and isinstance(known, logging.Logger):
            known.disabled = False
    logging.getLogger("metrics_ingest").setLevel(level)
