"""The page on OpenTelemetry: its programs store what they record, its configuration has the Collector's structure."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otlp.conftest import Otlp
from otlp.sdks import HERE
from support.documents import blocks
from support.metrics import register
from support.node import node_modules
from support.processes import ROOT, Postgres, function

yaml = pytest.importorskip("yaml")  # it comes with schemathesis, and has no types
PAGE = (ROOT / "docs/opentelemetry.md").read_text()
USER, SESSION = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", "6f1c2b7e-3a52-4c0e-9d3b-0a4f5b1c2d3e"


@pytest.fixture
def otlp(postgres: Postgres) -> Iterator[Otlp]:
    url = postgres.clone()
    register(url, USER)
    with function("ingest_otlp", url) as server:
        yield Otlp(server, url)


def variables(otlp: Otlp) -> dict[str, str]:
    """The page's variables, with the test's address."""
    found = dict(re.findall(r"^export (\w+)=(.*)$", blocks(PAGE)[0], re.MULTILINE))
    assert len(found) == 4
    endpoint = found["OTEL_EXPORTER_OTLP_ENDPOINT"].replace("http://localhost:8000", otlp.url)
    return {**os.environ, **found, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}


def check(otlp: Otlp) -> None:
    rows = sorted((row["metric_type"], row["value"], row["session_id"]) for row in otlp.rows(USER))
    assert rows == [("talked_time", 12.5, SESSION), ("voice_sentiment", 0.5, SESSION)]


def test_the_python_program_stores_what_it_records(otlp: Otlp) -> None:
    (program,) = blocks(PAGE, "python")
    subprocess.run([sys.executable, "-c", program], env=variables(otlp), check=True, timeout=60)
    check(otlp)


def test_the_node_program_stores_what_it_records(otlp: Otlp) -> None:
    node_modules(HERE / "js")
    program, _ = blocks(PAGE, "js")
    command = ["node", "--input-type=module", "--eval", program]
    subprocess.run(command, env=variables(otlp), cwd=HERE / "js", check=True, timeout=60)
    check(otlp)


def test_the_browser_program_stores_what_it_records(otlp: Otlp) -> None:
    """In Node, which has crypto, too; tests/otlp/test_browser.py has a browser."""
    node_modules(HERE / "js")
    _, program = blocks(PAGE, "js")
    command = ["node", "--input-type=module", "--eval", program.replace("http://localhost:8000", otlp.url)]
    subprocess.run(command, cwd=HERE / "js", check=True, timeout=60)
    assert otlp.values(USER) == [("voice_sentiment", 0.5)]


def test_the_collector_configuration_connects_what_it_defines() -> None:
    (text,) = blocks(PAGE, "yaml")
    configuration: dict[str, Any] = yaml.safe_load(text)
    assert set(configuration) == {"extensions", "receivers", "processors", "exporters", "service"}
    service = configuration["service"]
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in service["pipelines"].values() for name in pipeline.get(kind, [])}
        assert used == set(configuration[kind])
    assert set(service["extensions"]) == set(configuration["extensions"])
    assert set(service["pipelines"]) == {"metrics", "logs"}
    (exporter,) = configuration["exporters"].values()
    assert exporter["endpoint"].endswith("/ingest_otlp")
    assert exporter["sending_queue"]["storage"] in configuration["extensions"]
    assert exporter["sending_queue"]["enabled"] is exporter["retry_on_failure"]["enabled"] is True
    # The fields that the Collector knows (its exporterhelper, confighttp and configretry packages): another stops it.
    assert set(exporter) <= {"endpoint", "compression", "headers", "timeout", "retry_on_failure", "sending_queue"}
    assert set(exporter["retry_on_failure"]) <= {"enabled", "initial_interval", "max_interval", "max_elapsed_time"}
    assert set(exporter["sending_queue"]) <= {"enabled", "storage", "queue_size", "num_consumers"}


def test_the_commands_of_the_page_exist(postgres: Postgres) -> None:
    for line in blocks(PAGE)[1].splitlines():
        command = [str(Path(sys.executable).parent / "metrics-ingest"), *line.split()[1:], "--json"]
        environment = {"DATABASE_URL": postgres.clone(), "PATH": os.environ["PATH"]}
        json.loads(subprocess.check_output(command, env=environment, timeout=60))
