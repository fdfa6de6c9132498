"""Tests marked `alone` run while no other test does, also when several processes run tests (pytest-xdist)."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO


@cache
def _locks() -> tuple[IO[bytes], IO[bytes]]:
    """Two files to lock, which the processes of a run share."""
    stem = Path(tempfile.gettempdir()) / f"metrics-ingest-tests-{os.environ['PYTEST_XDIST_TESTRUNUID']}"
    waiting, running = (Path(f"{stem}-{name}").open("wb") for name in ("waiting", "running"))  # noqa: SIM115  # kept open
    return waiting, running


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait until no other test runs, or no test that must be alone, and keep it so for the block."""
    if "PYTEST_XDIST_TESTRUNUID" not in os.environ:  # this is the only process
        yield
        return
    waiting, running = _locks()
    fcntl.flock(waiting, fcntl.LOCK_EX)  # who waits to be alone must not wait for tests that begin later
    fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    fcntl.flock(waiting, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(running, fcntl.LOCK_UN)
