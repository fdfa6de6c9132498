"""`metrics-ingest load` and `export`: every metric is stored once, whatever fails, and exports can be loaded."""

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metrics_ingest.admin import csv_rows, files, sending
from support.console import Console
from support.memory import needs_proc, peak_bytes
from support.processes import BIN, Stack, eventually


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 10)
    monkeypatch.setattr(sending, "BACKOFF_S", (0.01,))


@pytest.fixture
def metrics(stack: Stack) -> list[dict[str, Any]]:
    """35 metrics of a new user, without ids, and one that is there twice."""
    user = stack.user()
    found = [
        {"user_id": user, "metric_type": "talked_time", "value": n, "timestamp": f"2024-08-08T12:{n:02}:00Z"}
        for n in range(34)
    ]
    return [*found, found[33]]


@pytest.fixture
def load(stack: Stack, tmp_path: Path) -> Callable[..., Any]:
    """Write lines to a file, load it, and return the counts."""

    def run(lines: list[Any], *options: str, exit_code: int = 0, name: str = "metrics.ndjson") -> Any:
        path = tmp_path / name
        if lines:
            path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return Console(stack.database_url).json(
            "load", str(path), "--url", f"{stack.ingest_batch.url}/ingest_batch/", *options, exit_code=exit_code
        )

    return run


def test_every_line_is_stored_and_a_second_run_stores_none(
    stack: Stack, metrics: list[Any], load: Callable[..., Any]
) -> None:
    assert load(metrics) == {"received": 35, "stored": 35, "duplicates": 0, "rejected": 0}
    assert load(metrics, "--parallel", "1") == {"received": 35, "stored": 0, "duplicates": 35, "rejected": 0}
    assert len(stack.stored(metrics[0]["user_id"])) == 35


def test_file_that_grew_stores_what_is_new(stack: Stack, metrics: list[Any], load: Callable[..., Any]) -> None:
    load(metrics[:23])
    assert load(metrics)["stored"] == 12


def test_metrics_of_different_files_are_no_duplicates(
    stack: Stack, metrics: list[Any], load: Callable[..., Any]
) -> None:
    load(metrics)
    others = [{**metric, "metric_type": "microphone_used", "value": 1} for metric in metrics]
    assert load(others, name="others.ndjson") == {"received": 35, "stored": 35, "duplicates": 0, "rejected": 0}


def test_packed_and_csv_and_standard_input_are_read(
    stack: Stack, metrics: list[Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "metrics.ndjson.gz"
    path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, metrics)).encode()))
    assert load([], name=path.name)["stored"] == 35
    text = io.StringIO()
    writer = csv.DictWriter(text, ["value", *csv_rows.METRIC_COLUMNS[:2], "timestamp", "session_id"])
    writer.writeheader()
    writer.writerows([{**metric, "metric_type": "speaker_used", "value": "true"} for metric in metrics])
    (tmp_path / "metrics.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.getvalue().encode()))
    assert load([], name="metrics.csv.gz")["stored"] == 35
    done = Console(stack.database_url).run(
        "load", "-", "--csv", "--json", "--url", f"{stack.ingest_batch.url}/ingest_batch/", input=text.getvalue()
    )
    assert json.loads(done.stdout)["duplicates"] == 35


def test_csv_with_unknown_columns_is_refused_before_anything_is_sent(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "wrong.csv").write_text("user_id,mood\n1,2\n")
    result = Console(stack.database_url).run("load", str(tmp_path / "wrong.csv"), exit_code=1)
    assert "not mood" in result.output


def test_truncated_file_is_an_error_with_its_name(
    stack: Stack, metrics: list[Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "half.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, metrics)).encode())[:-9])
    url = f"{stack.ingest_batch.url}/ingest_batch/"
    result = Console(stack.database_url).run("load", str(tmp_path / "half.gz"), "--url", url, exit_code=1)
    assert "half.gz: Compressed file ended" in result.output


def test_rejected_file_can_be_fixed_and_loaded(
    stack: Stack, metrics: list[Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    report = tmp_path / "rejected.ndjson"
    wrong = [
        *metrics[:12],
        {**metrics[12], "value": -1},
        '{"broken',
        {**metrics[13], "metric_type": "?"},
        *metrics[14:],
    ]
    options = ("--rejected", str(report))
    assert load(wrong, *options, exit_code=1) == {"received": 36, "stored": 33, "duplicates": 0, "rejected": 3}
    entries = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted((entry["line"], entry["errors"][0]["code"]) for entry in entries) == [
        (13, "value_out_of_range"), (14, "malformed_json"), (15, "invalid_metric_type")]  # fmt: skip
    for entry in entries:
        if isinstance(entry["metric"], str):
            entry["metric"] = json.dumps(metrics[13])
        else:
            entry["metric"] |= {"value": 5, "metric_type": "talked_time"}
    assert load(entries, name="fixed.ndjson")["stored"] == 3
    assert load(entries, name="fixed.ndjson")["duplicates"] == 3


class Flaky(BaseHTTPRequestHandler):
    """Answers 503, cuts the connection, or passes on and loses the answer; each request succeeds at last."""

    target = ""
    attempts: dict[str, int] = {}  # noqa: RUF012
    always: int | None = None

    def do_POST(self) -> None:
        import requests

        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Idempotency-Key"]
        attempt = self.attempts[key] = self.attempts.get(key, 0) + 1
        if attempt == 1 or self.always:
            self.send_response(self.always or 503)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif attempt == 2:
            self.connection.close()
        else:
            answer = requests.post(self.target, data=body, headers=dict(self.headers), timeout=10)
            if attempt > 3:
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)
            else:
                self.connection.close()  # the metrics are stored, but the reply is lost

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def flaky(stack: Stack) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    Flaky.target, Flaky.attempts, Flaky.always = f"{stack.ingest_batch.url}/ingest_batch/", {}, None
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/ingest_batch/"
    server.shutdown()
    server.server_close()


def test_lost_answers_and_503_are_tried_again_until_each_is_stored_once(
    stack: Stack, metrics: list[Any], load: Callable[..., Any], flaky: str
) -> None:
    total = load(metrics, "--url", flaky)
    assert (total["received"], total["stored"] + total["duplicates"], total["rejected"]) == (35, 35, 0)
    assert len(stack.stored(metrics[0]["user_id"])) == 35


def test_unreachable_function_and_wrong_key_have_exit_codes(tmp_path: Path, metrics: list[Any], flaky: str) -> None:
    (tmp_path / "m.ndjson").write_text(json.dumps(metrics[0]))
    console = Console("")
    nowhere = console.run(
        "load", str(tmp_path / "m.ndjson"), "--url", "http://127.0.0.1:1/", "--retry-for", "0.05", exit_code=3
    )
    assert "cannot reach http://127.0.0.1:1/" in nowhere.output
    Flaky.always = 401
    assert "answers 401" in console.run("load", str(tmp_path / "m.ndjson"), "--url", flaky, exit_code=1).output


def test_interrupted_load_continues(stack: Stack, tmp_path: Path) -> None:
    """Ctrl-C in the middle of 60,000 metrics: the next run stores the rest, and all are there once."""
    user = stack.user()
    path = tmp_path / "m.ndjson"
    line = '{"user_id":"%s","metric_type":"talked_time","value":1,"timestamp":"2024-08-08T12:00:00Z"}\n'
    path.write_text(line % user * 60_000)
    command: list[str | Path] = [
        BIN / "metrics-ingest",
        "load",
        path,
        "--parallel",
        "2",
        "--json",
        "--url",
        f"{stack.ingest_batch.url}/ingest_batch/",
    ]
    first = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        # A shell starts what runs in the background with SIGINT ignored, and Python would leave it so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    count = "SELECT count(*) FROM metrics WHERE user_id = :u"
    eventually(lambda: stack.query(count, u=user)[0][0] > 0)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=30)
    assert (first.returncode, "nothing is lost" in err) == (130, True), err
    assert json.loads(out)["stored"] < 60_000
    ((before,),) = stack.query(count, u=user)
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(second.stdout) == {
        "received": 60_000,
        "stored": 60_000 - before,
        "duplicates": before,
        "rejected": 0,
    }
    assert stack.query(count, u=user) == [[60_000]]


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_what_is_exported_loads_into_another_database_as_the_same(
    stack: Stack, metrics: list[Any], console: Console, serve: Callable[..., Any], tmp_path: Path, form: str
) -> None:
    user = metrics[0]["user_id"]
    metrics[0] |= {"value": 0.1 + 0.2, "timestamp": "2024-08-08T12:00:00.000001+02:00", "session_id": str(uuid4())}
    assert stack.send_batch(metrics).json()["stored"] == 35
    path = tmp_path / f"export.{form}"
    done = Console(stack.database_url).run("export", "--user", user, "--format", form, "-o", str(path))
    assert "35 metrics" in done.stderr
    console.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=user)
    batch = serve("ingest_batch", console.url)
    total = console.json("load", str(path), "--url", f"{batch.url}/ingest_batch/")
    assert total == {"received": 35, "stored": 35, "duplicates": 0, "rejected": 0}
    rows = (
        "SELECT user_id, timestamp, metric_id, session_id, metric_type, value"
        " FROM metrics WHERE user_id = :u ORDER BY timestamp, metric_id"
    )
    assert console.sql(rows, u=user) == stack.query(rows, u=user)


def test_export_starts_at_from_and_ends_before_to(stack: Stack, metrics: list[Any]) -> None:
    stack.send_batch(metrics)
    done = Console(stack.database_url).run(
        "export", "--user", metrics[0]["user_id"], "--from", "2024-08-08T14:05:00+02:00", "--to", "2024-08-08T12:07:00",
        "--type", "talked_time",
    )  # fmt: skip
    assert sorted(json.loads(line)["value"] for line in done.stdout.splitlines()) == [5, 6]
    assert Console(stack.database_url).run("export", "--from", "yesterday", exit_code=2)


def test_reader_that_closes_the_pipe_is_no_failure(console: Console, filled: Callable[[str, int], str]) -> None:
    filled("2024-08-01", 20_000)
    script = f'"{BIN}/metrics-ingest" export; echo $? >&2'
    reader = ["bash", "-c", f"({script}) | head -n 1"]
    done = subprocess.run(
        reader, env={**os.environ, "DATABASE_URL": console.url}, capture_output=True, text=True, check=True
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "0\n")


@needs_proc
def test_export_needs_no_more_memory_for_more_rows(console: Console, filled: Callable[[str, int], str]) -> None:
    """A hundred thousand rows, and the peak of none (within the noise of the allocator)."""

    def peak(metric_type: str) -> int:
        code = (
            "from metrics_ingest.admin.cli import main; "
            f"main(['export', '--type', '{metric_type}', '-o', '/dev/null'], standalone_mode=False); "
            "print('done', flush=True); input()"
        )
        environment = {**os.environ, "DATABASE_URL": console.url}
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == b"done\n"
            found = peak_bytes(process.pid)
            process.stdin.write(b"\n")
        return found

    filled("2024-08-01", 100_000)
    assert peak("talked_time") < peak("speaker_used") + 4 * 1024 * 1024
