"""The real SDKs, without changes: what they record is what is stored."""

from collections.abc import Callable

import pytest

from otlp.conftest import Otlp
from otlp.sdks import RECORDED, SDKS, add_types, exporting, stored
from support.metrics import register
from support.processes import Server


@pytest.fixture(autouse=True, scope="module")
def _types(otlp: Otlp) -> None:
    add_types(otlp.database_url)


@pytest.mark.parametrize("signal", RECORDED)
@pytest.mark.parametrize("sdk", SDKS)
def test_what_an_sdk_records_is_stored(otlp: Otlp, sdk: str, signal: str) -> None:
    user = otlp.user()
    with exporting(sdk, signal, otlp.url, user):
        pass
    assert stored(otlp, user) == RECORDED[signal]


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression_of_the_python_sdk(otlp: Otlp, compression: str) -> None:
    user = otlp.user()
    with exporting("python", "metrics", otlp.url, user, OTEL_EXPORTER_OTLP_COMPRESSION=compression):
        pass
    assert stored(otlp, user) == RECORDED["metrics"]


@pytest.mark.parametrize("sdk", ["python", "node-json"])
def test_key_is_sent_by_a_variable(database_url: str, serve: Callable[..., Server], sdk: str) -> None:
    entry = "app:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # sha256 of "secret"
    server = serve("ingest_otlp", database_url, API_KEYS=entry, ALLOW_ANONYMOUS="false")
    otlp, user = Otlp(server, database_url), register(database_url)
    with exporting(sdk, "logs", server.url, user, OTEL_EXPORTER_OTLP_HEADERS="x-api-key=secret"):
        pass
    assert stored(otlp, user) == RECORDED["logs"]


def test_default_temporality_is_refused_with_the_variable_that_changes_it(otlp: Otlp) -> None:
    """In the SDK's own log, where its user looks."""
    user = otlp.user()
    cumulative = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative"}
    with exporting("node-json", "metrics", otlp.url, user, **cumulative, OTEL_LOG_LEVEL="WARN"):
        pass
    assert stored(otlp, user) == [("voice_sentiment", 0.5, None)]
    codes = [codes for codes, _, _ in otlp.kept(user)]
    assert codes == [["cumulative_temporality"]] * 3
