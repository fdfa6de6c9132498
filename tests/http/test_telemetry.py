"""`GET …/metrics`: what the functions count of their own work, and the trace of a request in its log lines."""

import json
import os
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from metrics_ingest import logs, telemetry
from support.emulator import emulator, failed_start
from support.metrics import current, metric, register
from support.mortal import Mortal
from support.processes import Server, eventually, query
from support.prometheus import Samples, scrape

Serve = Callable[..., Server]


def total(samples: Samples, name: str) -> float:
    """Return the sum of the samples of one name, whatever their labels."""
    return sum(value for key, value in samples.items() if key.partition("{")[0] == name)


def test_without_the_setting_nothing_is_counted(database_url: str, serve: Serve) -> None:
    for name in ("ingest", "dashboard"):
        answer = requests.get(f"{serve(name, database_url).url}/{name}/metrics", timeout=10)
        assert answer.headers["content-type"] != "text/plain"
        assert "metrics_ingest_" not in answer.text


@pytest.mark.parametrize("name", ["ingest", "dashboard"])
def test_setting_must_be_true_or_false(database_url: str, serve: Serve, name: str) -> None:
    with pytest.raises(AssertionError, match="PROMETHEUS must be one of true, false, not 'maybe'"):
        serve(name, database_url, PROMETHEUS="maybe")


def test_every_metric_and_request_is_counted_once(database_url: str, serve: Serve) -> None:
    user = register(database_url)
    server = serve("ingest_batch", database_url, PROMETHEUS="true")
    metrics = [metric(user) for _ in range(5)]
    bad = [metric(user, value=-1), metric(str(uuid4())), {"value": "x"}]
    assert requests.post(server.url, json=metrics + bad, timeout=10).status_code == 207
    assert requests.post(server.url, json=metrics, timeout=10).status_code == 200
    assert (
        requests.post(server.url, data=b"[", headers={"Content-Type": "application/json"}, timeout=10).status_code
        == 400
    )
    assert requests.put(server.url, timeout=10).status_code == 405
    assert requests.post(server.url, json=[metric(user)], timeout=10).json()["stored"] == 1
    samples = scrape(f"{server.url}/ingest_batch/metrics")
    assert samples["metrics_ingest_stored_total"] == 6 == query(database_url, "SELECT count(*) FROM metrics")[0][0]
    assert samples["metrics_ingest_duplicates_total"] == 5
    rejected = {key: value for key, value in samples.items() if key.startswith("metrics_ingest_rejected_total")}
    assert rejected == {
        f'metrics_ingest_rejected_total{{code="{code}",function="ingest_batch"}}': 1
        for code in ("value_out_of_range", "unknown_user", "missing_field", "malformed_json")
    }
    assert samples['metrics_ingest_requests_total{code="",function="ingest_batch",status="207"}'] == 1
    assert samples['metrics_ingest_requests_total{code="malformed_json",function="ingest_batch",status="400"}'] == 1
    assert samples['metrics_ingest_requests_total{code="method_not_allowed",function="ingest_batch",status="405"}'] == 1
    assert (samples["metrics_ingest_commit_rows_count"], samples["metrics_ingest_commit_rows_sum"]) == (3, 13)
    assert samples["metrics_ingest_commit_seconds_count"] == 3
    assert 0 < samples["metrics_ingest_commit_seconds_sum"] < 5
    assert samples["metrics_ingest_waiting"] == 0
    assert total(samples, "metrics_ingest_build_info") == 1


def test_workers_add_up_also_those_that_have_died(database_url: str, serve: Serve) -> None:
    user = register(database_url)
    server = serve("ingest", database_url, PROMETHEUS="true", WORKERS="3")

    def send(count: int) -> None:
        for _ in range(count):  # a connection each, so that every worker gets some
            assert requests.post(server.url, json=metric(user), timeout=10).status_code == 200

    send(60)
    assert {scrape(f"{server.url}/metrics")["metrics_ingest_stored_total"] for _ in range(10)} == {60}
    workers = server.workers
    assert len(workers) == 3
    workers[0].kill()
    eventually(lambda: len(server.workers) == 3 and workers[0] not in server.workers)
    send(20)
    assert {scrape(f"{server.url}/metrics")["metrics_ingest_stored_total"] for _ in range(10)} == {80}


def test_what_waited_in_a_process_that_has_ended_waits_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setenv(telemetry.SHARED_DIRECTORY, str(tmp_path))
    lasting, left = (tmp_path / f"gauge_livesum_{process}.db" for process in (os.getpid(), ended.pid))
    for file in (lasting, left):
        file.write_bytes(struct.pack("=ii", 8, 0))  # prometheus_client's form: so many bytes are used
    telemetry.Telemetry().exposition()
    assert (lasting.exists(), left.exists()) == (True, False)


def test_directory_of_the_workers_is_removed_at_the_end(database_url: str, serve: Serve, tmp_path: Path) -> None:
    server = serve("ingest", database_url, PROMETHEUS="true", WORKERS="2", TMPDIR=str(tmp_path))
    scrape(f"{server.url}/metrics")
    assert list(tmp_path.glob("metrics-ingest-*/*.db"))
    server.stop()
    assert not list(tmp_path.glob("metrics-ingest-*"))


def test_what_waits_while_the_database_is_away(mortal: Mortal, serve: Serve) -> None:
    url = mortal.clone()
    user = register(url)
    ingest = serve("ingest_batch", url, PROMETHEUS="true", WRITE_TIMEOUT_S="2")
    dashboard = serve("dashboard", url, PROMETHEUS="true")
    assert scrape(f"{dashboard.url}/dashboard/metrics")["metrics_ingest_database_up"] == 1
    mortal.kill()
    answer = requests.post(ingest.url, json=[metric(user)] * 7, timeout=20)
    assert answer.json()["code"] == "store_unavailable"
    samples = scrape(f"{ingest.url}/metrics")
    assert samples["metrics_ingest_connection_failures_total"] > 1
    assert samples['metrics_ingest_requests_total{code="store_unavailable",function="ingest_batch",status="503"}'] == 1
    assert samples["metrics_ingest_stored_total"] == 0
    eventually(lambda: scrape(f"{dashboard.url}/dashboard/metrics")["metrics_ingest_database_up"] == 0, 15)


def test_waiting_metrics_are_seen_while_they_wait(mortal: Mortal, serve: Serve) -> None:
    url = mortal.clone()
    user = register(url)
    server = serve("ingest_batch", url, PROMETHEUS="true", WRITE_TIMEOUT_S="5", WRITE_LANES="1")
    assert requests.post(server.url, json=[metric(user)], timeout=10).status_code == 200
    mortal.pause()
    try:
        with ThreadPoolExecutor(4) as pool:
            # More than one write takes (10,000 metrics), however many of the requests it finds.
            body = [metric(user)] * 4_000
            replies = [pool.submit(requests.post, server.url, json=body, timeout=20) for _ in range(4)]
            eventually(lambda: scrape(f"{server.url}/metrics")["metrics_ingest_waiting"] >= 8_000, 4)
            for reply in replies:
                assert reply.result().status_code == 503
    finally:
        mortal.resume()
    eventually(lambda: scrape(f"{server.url}/metrics")["metrics_ingest_waiting"] == 0)


def test_dashboard_knows_the_state_of_the_database(database_url: str, serve: Serve) -> None:
    server = serve("dashboard", database_url, PROMETHEUS="true")
    samples = scrape(f"{server.url}/dashboard/metrics")
    assert samples["metrics_ingest_database_up"] == 1
    assert samples['metrics_ingest_default_partition_rows{table="metrics"}'] == 0
    assert samples['metrics_ingest_months_ahead{table="metrics"}'] >= 1
    assert "metrics_ingest_last_received_timestamp_seconds" not in samples
    assert "metrics_ingest_summaries_refreshed_timestamp_seconds" not in samples
    user = register(database_url)
    ingest = serve("ingest_batch", database_url)
    assert requests.post(ingest.url, json=[metric(user), metric(user), current(user)], timeout=10).ok
    later = serve("dashboard", database_url, PROMETHEUS="true")  # which has not read before
    samples = scrape(f"{later.url}/metrics")
    assert samples['metrics_ingest_default_partition_rows{table="metrics"}'] == 2
    ((received,),) = query(database_url, "SELECT extract(epoch FROM max(received_at))::float8 FROM metrics")
    assert samples["metrics_ingest_last_received_timestamp_seconds"] == pytest.approx(received, abs=0.001)


def test_emulator_counts_all_functions_at_one_address(database_url: str) -> None:
    with emulator(DATABASE_URL=database_url) as server:
        user = register(database_url)
        assert requests.post(f"{server.url}/ingest/", json=current(user), timeout=10).ok
        assert requests.post(f"{server.url}/ingest_batch/", json=[current(user)], timeout=10).ok
        samples = scrape(f"{server.url}/metrics")
        assert samples["metrics_ingest_stored_total"] == 2
        assert samples["metrics_ingest_database_up"] == 1
        assert samples == {**samples, **_requests(ingest=1, ingest_batch=1)}


def _requests(**counts: int) -> Samples:
    return {
        f'metrics_ingest_requests_total{{code="",function="{name}",status="200"}}': count
        for name, count in counts.items()
    }


def test_bad_setting_stops_the_emulator() -> None:
    assert "PROMETHEUS must be" in failed_start(DATABASE_URL="postgresql://x@localhost/x", PROMETHEUS="2")


# Traces.

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("traceparent", f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN)),
        ("traceparent", f"01-{TRACE}-{SPAN}-01-more", (TRACE, SPAN)),
        ("x-cloud-trace-context", f"{TRACE}/{int(SPAN, 16)};o=1", (TRACE, SPAN)),
        ("x-cloud-trace-context", f"{TRACE.upper()}/1", (TRACE, "0000000000000001")),
        ("x-cloud-trace-context", TRACE, (TRACE, None)),
        ("traceparent", f"00-{'0' * 32}-{SPAN}-01", None),
        ("traceparent", f"00-{TRACE}-{'0' * 16}-01", None),
        ("traceparent", f"ff-{TRACE}-{SPAN}-01", None),
        ("traceparent", f"00-{TRACE}-{SPAN}", None),
        ("traceparent", f"00-{TRACE}\n-{SPAN}-01", None),
        ("x-cloud-trace-context", "x", None),
        ("x-cloud-trace-context", f"{TRACE}/{'9' * 50}", None),
    ],
)
def test_trace_of_a_request(name: str, value: str, expected: tuple[str, str | None] | None) -> None:
    found = logs.trace([(b"host", b"x"), (name.encode(), value.encode())])
    trace_field, span_field = "logging.googleapis.com/trace", "logging.googleapis.com/spanId"
    if expected is None:
        assert found == {}
    else:
        assert (found[trace_field], found.get(span_field)) == expected


def test_trace_names_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "shop")
    found = logs.trace([(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())])
    assert found["logging.googleapis.com/trace"] == f"projects/shop/traces/{TRACE}"


@pytest.mark.parametrize("name", ["ingest", "dashboard"])
def test_log_lines_of_a_request_carry_its_trace(database_url: str, serve: Serve, name: str) -> None:
    server = serve(name, database_url)
    requests.delete(f"{server.url}/{name}/", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}, timeout=10)
    requests.delete(f"{server.url}/{name}/", timeout=10)

    def refusals() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        found = [line for line in lines if line["message"] == "request refused"]
        return found if len(found) == 2 else []

    first, second = eventually(refusals)
    assert (first["logging.googleapis.com/trace"], first["logging.googleapis.com/spanId"]) == (TRACE, SPAN)
    assert "logging.googleapis.com/trace" not in second
