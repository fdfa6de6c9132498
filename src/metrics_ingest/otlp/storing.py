"""Stores the records of a request, and accounts for every one of them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics_ingest.errors import Fault
from metrics_ingest.http.functions import PROTOBUF
from metrics_ingest.model.metric import MetricRow
from metrics_ingest.otlp import json_text, protobuf
from metrics_ingest.otlp.records import Records, metric_of
from metrics_ingest.otlp.signals import Signal
from metrics_ingest.otlp.teaching import taught
from metrics_ingest.settings import settings
from metrics_ingest.storage.aggregations import aggregations
from metrics_ingest.storage.ingest import store
from metrics_ingest.storage.quarantine import Rejected

COMMIT_TIMEOUT_S = 4.0  # because SDKs give up after 10 s in all, and a second attempt must fit in
READERS = {
    (Signal.METRICS, True): protobuf.read_metrics,
    (Signal.METRICS, False): json_text.read_metrics,
    (Signal.LOGS, True): protobuf.read_logs,
    (Signal.LOGS, False): json_text.read_logs,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request's records: the refused ones, each as (JSON metric, faults), by position."""

    received: int
    stored: int
    duplicates: int
    refused: Mapping[int, tuple[dict[str, Any], Sequence[Fault]]]

    def rejected(self) -> Rejected:
        """Return the refused records, each as the metric that it amounts to, for the quarantine."""
        refused = [self.refused[position] for position in sorted(self.refused)]
        return Rejected(dict(enumerate(faults for _, faults in refused)), [metric for metric, _ in refused])


def read(signal: Signal, media_type: bytes, body: bytes) -> Records:
    """Read a request's records. Raise RequestRefused."""
    records = Records()
    READERS[signal, media_type == PROTOBUF](body, records)
    return records


async def store_records(records: Records) -> Outcome:
    """Store the valid records, within COMMIT_TIMEOUT_S. Raise what Writer.write raises."""
    loop = asyncio.get_running_loop()
    until = loop.time() + min(COMMIT_TIMEOUT_S, settings().write_timeout_s)
    found: dict[str, str] = {}
    if records.conditions:
        types = {_type_of(records.rows[index]) for index in records.conditions}
        found = await aggregations(sorted(types), until - loop.time())
    batch = records.batch(found)
    rows = dict(zip(batch.positions, batch.rows, strict=True))
    report = await store(batch, timeout_s=max(0.1, until - loop.time()))
    refused = {}
    for position, faults in report.faults.items():
        metric = records.refused.get(position)
        if metric is None:
            metric, faults = metric_of(rows[position]), [taught(fault, "") for fault in faults]
        refused[position] = metric, faults
    return Outcome(report.received, report.stored, report.duplicates, refused)


def _type_of(row: MetricRow) -> str:
    _, _, _, _, metric_type, _ = row
    return metric_type
