"""What `GET …/metrics` says, read by Prometheus' own parser; and a real Prometheus."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from support.processes import eventually, free_port

Samples = dict[str, float]


def scrape(url: str) -> Samples:
    """Return each sample, as `name{label="value",…}` with the labels in order."""
    answer = requests.get(url, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        _spelled(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def _spelled(name: str, labels: dict[str, str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}" if pairs else name


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        """Return what an expression gives at this moment."""
        return list(self.get("query", query=expression)["result"])


def tool(name: str) -> str:
    """Return the path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if not found:
        pytest.skip("Prometheus is not installed")
    return found


@contextmanager
def prometheus(directory: Path, configuration: str) -> Iterator[Prometheus]:
    """Run Prometheus until the block ends, with its files in `directory`."""
    (directory / "prometheus.yml").write_text(configuration)
    port = free_port()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        running = Prometheus(f"http://127.0.0.1:{port}")

        def is_ready() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            try:
                return requests.get(f"{running.url}/-/ready", timeout=5).ok
            except requests.ConnectionError:
                return False

        try:
            eventually(is_ready, 30)
            yield running
        finally:
            process.terminate()
            process.wait(20)
