"""Keeps the summaries of a running emulator up to date: soon after metrics were stored, and only then."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pg8000.exceptions

from metrics_ingest.admin.summaries import refresh
from metrics_ingest.settings import Database
from metrics_ingest.storage.driver import connect, reason_of

GATHER_S = 0.7  # between a metric and the refresh: with the refresh itself less than two seconds
SHARE = 4  # a refresh that took a second is followed by four seconds without one, because under load it reads much
TIMEOUT_S = 600

logger = logging.getLogger(__name__)


class Refresher:
    """A thread that refreshes the summaries after `notice`. While nothing is stored, it waits and costs nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stored = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="summaries", daemon=True)

    def notice(self) -> None:
        """Say that metrics may have been stored. It returns at once, whatever the refresh does."""
        self._stored.set()

    @contextmanager
    def running(self) -> Iterator["Refresher"]:
        """Run until the block ends."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._stored.set()
            self._thread.join(5)

    def _run(self) -> None:
        self._stored.wait()
        while not self._stopping.wait(GATHER_S):
            self._stored.clear()
            began = time.monotonic()
            self._refresh()
            self._stopping.wait(SHARE * (time.monotonic() - began))
            self._stored.wait()

    def _refresh(self) -> None:
        try:
            connection = connect(self._database, TIMEOUT_S)
            try:
                refresh(connection)
            finally:
                connection.close()
        except (pg8000.exceptions.Error, OSError) as error:
            logger.warning("the summaries cannot be refreshed", extra={"facts": {"reason": reason_of(error)}})
