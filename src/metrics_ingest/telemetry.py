"""What the functions count of their own work, for Prometheus: `GET …/metrics`, where PROMETHEUS=true.

Several processes of one function (WORKERS) count in files of a shared directory, and each answers with all sums.
Where PROMETHEUS is not set nothing is counted, and prometheus_client is not imported.
"""

import atexit
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from metrics_ingest import __version__
from metrics_ingest.settings import BadSetting, read_flag

SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own variable
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Telemetry:
    """The counters, gauges and histograms of this process."""

    def __init__(self) -> None:
        if int(os.environ.get("WORKERS") or 1) > 1 and not os.environ.get(SHARED_DIRECTORY):
            _share_a_directory()  # before the import, which looks for it
        import prometheus_client
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram

        # When each series began is half of all lines, and Prometheus does not need it.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # this function has no types

        self.content_type = CONTENT_TYPE_LATEST.encode()  # of the exposition
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "metrics_ingest_requests",
            "Requests answered, by function, HTTP status and error code.",
            ("function", "status", "code"),
            registry=registry,
        )
        self._counters: dict[tuple[str, int, str], Counter] = {}
        self._stored = Counter("metrics_ingest_stored", "Metrics stored and committed.", registry=registry)
        self._duplicates = Counter(
            "metrics_ingest_duplicates", "Metrics received that were stored before.", registry=registry
        )
        self._rejected = Counter(
            "metrics_ingest_rejected",
            "Metrics rejected, by the code of the first fault. A body that is refused as a whole counts as one.",
            ("function", "code"),
            registry=registry,
        )
        self._waiting = Gauge(
            "metrics_ingest_waiting",
            "Metrics received that wait for their commit.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._commit_seconds = Histogram(
            "metrics_ingest_commit_seconds",
            "Time from sending a group of metrics to the database until it has committed them.",
            buckets=SECONDS,
            registry=registry,
        )
        self._commit_rows = Histogram(
            "metrics_ingest_commit_rows", "Metrics that went to the database together.", buckets=ROWS, registry=registry
        )
        self._connection_failures = Counter(
            "metrics_ingest_connection_failures",
            "Attempts to reach the database, or to use a connection to it, that failed.",
            registry=registry,
        )
        Gauge(
            "metrics_ingest_build_info",
            "Always 1; the labels say what runs.",
            ("version", "python"),
            multiprocess_mode="max",
            registry=registry,
        ).labels(__version__, platform.python_version()).set(1)

    def request(self, function: str, status: int, code: str) -> None:
        """Count an answered request; `code` is that of its problem, or empty."""
        key = (function, status, code)
        counter = self._counters.get(key)  # labels() takes twice as long as inc()
        if counter is None:
            counter = self._counters[key] = self._requests.labels(*key)
        counter.inc()

    def accepted(self, stored: int, duplicates: int) -> None:
        """Count metrics that are committed, and metrics that were stored before."""
        if stored:
            self._stored.inc(stored)
        if duplicates:
            self._duplicates.inc(duplicates)

    def rejected(self, function: str, code: str) -> None:
        """Count a rejected metric; `code` is that of its first fault."""
        self._rejected.labels(function, code).inc()

    def waiting(self, metrics: int) -> None:
        """Set the number of metrics that wait for a commit."""
        self._waiting.set(metrics)

    def committed(self, rows: int, seconds: float) -> None:
        """Observe a commit."""
        self._commit_rows.observe(rows)
        self._commit_seconds.observe(seconds)

    def connection_failed(self) -> None:
        """Count a failure to reach the database, or to use a connection to it."""
        self._connection_failures.inc()

    def exposition(self) -> bytes:
        """Return everything, of all processes, in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess

        directory = os.environ.get(SHARED_DIRECTORY)
        if not directory:
            return generate_latest(self._registry)
        _forget_ended_processes(Path(directory))
        merged = CollectorRegistry()
        multiprocess.MultiProcessCollector(merged)  # type: ignore[no-untyped-call]  # this class has no types
        return generate_latest(merged)


def _share_a_directory() -> None:
    """Make the directory for the files of all processes that are forked from this one, until this one ends."""
    directory, owner = tempfile.mkdtemp(prefix="metrics-ingest-"), os.getpid()
    os.environ[SHARED_DIRECTORY] = directory

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)


def _forget_ended_processes(directory: Path) -> None:
    """Remove the gauges of processes that have ended: what waited in them waits no more. Their counters stay."""
    for file in directory.glob("gauge_livesum_*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):
                file.unlink()


@cache
def telemetry() -> Telemetry | None:
    """Return this process's telemetry, or None where PROMETHEUS is not set. Raise SystemExit if it is wrong."""
    try:
        return Telemetry() if read_flag(os.environ, "PROMETHEUS", default=False) else None
    except BadSetting as error:
        raise SystemExit(f"metrics-ingest: {error}") from None
