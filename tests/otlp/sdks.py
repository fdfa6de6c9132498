"""The real SDKs, each as a process that records the same and exports it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otlp.conftest import Otlp
from support.node import node_modules
from support.processes import ROOT, query

HERE = Path(__file__).parent
SDKS = ("python", "node-json", "node-protobuf")
SESSION, OTHER = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "00f067aa-0ba9-42b7-8d3c-0123456789ab"
RECORDED = {
    "metrics": [
        ("call_length", 30.5, None),
        ("talked_time", 3.5, SESSION),
        ("talked_time", 4.0, OTHER),
        ("voice_sentiment", 0.5, None),
    ],
    "logs": [("microphone_used", 1.0, SESSION), ("talked_time", 7.0, None), ("voice_sentiment", -0.25, None)],
}


def add_types(url: str) -> None:
    """Register the metric type of the histogram."""
    query(url, "INSERT INTO metric_types (metric_type, kind, aggregation) VALUES ('call_length', 'duration', 'sum')")


def stored(otlp: Otlp, user: str) -> list[tuple[str, float, str | None]]:
    """What is stored of a user: types, values, and the sessions that were named."""
    rows = otlp.rows(user)
    found = [(row["metric_type"], row["value"], row["session_id"]) for row in rows]
    named = (SESSION, OTHER)
    return sorted((kind, value, session if session in named else None) for kind, value, session in found)


def environment(url: str, user: str, **more: str) -> dict[str, str]:
    """What an application sets: the three variables of docs/opentelemetry.md."""
    return {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{url}/ingest_otlp",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
        "OTEL_RESOURCE_ATTRIBUTES": f"user.id={user},service.name=tests",
        **more,
    }


@contextmanager
def exporting(sdk: str, signal: str, url: str, user: str, **more: str) -> Iterator[Any]:
    """An SDK that has recorded and is about to export; at the end of the block it must have exported."""
    command = [sys.executable, str(HERE / "record.py")]
    if sdk != "python":
        node_modules(HERE / "js")
        command = ["node", str(HERE / "js/record.js")]
        more["OTLP_FORMAT"] = sdk.removeprefix("node-")
    process = subprocess.Popen(
        [*command, signal, SESSION, OTHER],
        env=environment(url, user, **more),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "exporting\n"
        yield process
        # Not communicate(), which would miss what readline() has read ahead.
        timer = threading.Timer(40, process.kill)
        timer.start()
        output = process.stdout.read()
        timer.cancel()
        assert output == "exported\n", (output, process.communicate())
    finally:
        process.kill()
        process.communicate()
