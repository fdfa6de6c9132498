"""The Python client: what it is answered, and how its process ends."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from clients.browsers import User
from clients.disturbances import RecordingProxy, answer_cut, answer_lost, between, no_answer, reply, stalled
from metrics_ingest.admin.keys import new_key
from metrics_ingest.client import Client
from support.processes import Server, eventually


@pytest.fixture
def proxy(batch: tuple[str, Server]) -> Iterator[RecordingProxy]:
    with between(batch[1].url) as proxy:
        yield proxy


def record(client: Client, *values: float) -> None:
    for value in values:
        client.record("talked_time", value)


def test_metrics_are_sent_together_after_flush_s_or_when_a_batch_is_full(proxy: RecordingProxy, user: User) -> None:
    with Client(proxy.url, user_id=user.id, flush_s=1, max_batch=5) as client:
        record(client, 0, 1)
        time.sleep(0.4)
        assert user.values == []
        eventually(lambda: user.values == [0, 1], 2)
        client.flush()
        record(client, 2, 3, 4, 5, 6)
        eventually(lambda: len(user.values) == 7, 0.9)
    assert [len(request.lines) for request in proxy.requests] == [2, 5]


@pytest.mark.alone
def test_recording_does_not_wait_for_the_network(proxy: RecordingProxy, user: User) -> None:
    proxy.troubles = [stalled(1)]
    with Client(proxy.url, user_id=user.id, max_batch=1) as client:
        begun = time.monotonic()
        record(client, *range(100))
        assert time.monotonic() - begun < 0.5
        assert client.flush(10)
    assert user.values == list(range(100))


def test_what_cannot_be_a_metric_is_raised_where_it_is_recorded(proxy: RecordingProxy, user: User) -> None:
    with Client(proxy.url) as client:
        values: tuple[Any, ...] = (float("nan"), float("inf"), "text", None, [], 10**400)
        for value in values:
            with pytest.raises((TypeError, ValueError)):
                client.record("talked_time", value, user_id=user.id)
        with pytest.raises(ValueError, match="time zone"):
            client.record("talked_time", 1, user_id=user.id, timestamp=datetime(2024, 8, 8))
        with pytest.raises(ValueError, match="user_id"):
            client.record("talked_time", 1)
    with pytest.raises(RuntimeError, match="closed"):
        client.record("talked_time", 1, user_id=user.id)
    assert proxy.requests == []


def test_refused_metrics_are_reported_once_by_code(proxy: RecordingProxy, user: User) -> None:
    rejections: list[dict[str, Any]] = []
    with Client(proxy.url, user_id=user.id, on_rejected=rejections.append) as client:
        record(client, 1, -1)
        client.record("shoe_size", 44)
        client.flush()
        record(client, -2)
    reported = [(rejection["code"], rejection["metric"]["value"]) for rejection in rejections]
    assert reported == [("value_out_of_range", -1), ("unknown_metric_type", 44), ("value_out_of_range", -2)]
    assert user.values == [1]


@pytest.mark.parametrize("status", [207, 422])
def test_refusals_that_are_not_listed_are_asked_for_again(proxy: RecordingProxy, user: User, status: int) -> None:
    """A function that is short of memory lists none: to take the refused metric for a stored one would lose it."""
    unlisted = b'{"received": 3, "stored": 2, "duplicates": 0, "rejected": 1, "errors": [], "errors_omitted": 1}'
    proxy.troubles = [lambda handler, _: reply(handler, status, unlisted)]
    rejections: list[dict[str, Any]] = []
    with Client(proxy.url, user_id=user.id, on_rejected=rejections.append) as client:
        record(client, 1, -1, 2)
        assert client.flush(10)
    assert [(rejection["code"], rejection["metric"]["value"]) for rejection in rejections] == [
        ("value_out_of_range", -1)
    ]
    assert user.values == [1, 2]


@pytest.mark.parametrize("trouble", [no_answer, answer_lost, answer_cut])
def test_without_an_answer_the_same_metrics_are_sent_again(proxy: RecordingProxy, user: User, trouble: Any) -> None:
    proxy.troubles = [trouble]
    with Client(proxy.url, user_id=user.id) as client:
        record(client, 1, 2)
        assert client.flush(10)
    assert proxy.requests[0].lines == proxy.requests[1].lines
    assert proxy.replies[0]["duplicates"] == (0 if trouble is no_answer else 2)
    assert user.values == [1, 2]


def test_a_proxys_own_page_counts_as_no_answer(proxy: RecordingProxy, user: User) -> None:
    proxy.troubles = [lambda handler, _: reply(handler, 200, b"<h1>Sign in to this network</h1>")]
    with Client(proxy.url, user_id=user.id) as client:
        record(client, 1)
        assert client.flush(10)
    assert user.values == [1]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_respected(proxy: RecordingProxy, user: User, form: str) -> None:
    after = "2" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    proxy.troubles = [lambda handler, _: reply(handler, 503, b"", Retry_After=after)]
    with Client(proxy.url, user_id=user.id) as client:
        record(client, 1)
        assert client.flush(15)
    assert 1.9 < proxy.requests[1].time - proxy.requests[0].time < 7


def test_a_refused_key_stops_once_and_keeps_the_queue(
    batch: tuple[str, Server], user: User, serve: Callable[..., Server]
) -> None:
    server = serve("ingest_batch", batch[0], API_KEYS=new_key("web")[1], ALLOW_ANONYMOUS="false")
    rejections: list[dict[str, Any]] = []
    dropped: list[int] = []
    with between(server.url) as proxy:
        client = Client(proxy.url, "wrong", user_id=user.id, on_rejected=rejections.append, on_dropped=dropped.append)
        for value in range(3):
            record(client, value)
            assert client.flush() is False
        assert [(rejection["code"], rejection["metric"]) for rejection in rejections] == [("unauthorized", None)]
        assert len(proxy.requests) == 1
        assert dropped == []
        assert client.close() is False
        assert dropped == [3]


def test_a_body_over_the_limit_is_halved_and_a_single_one_is_reported(
    batch: tuple[str, Server], user: User, serve: Callable[..., Server]
) -> None:
    server = serve("ingest_batch", batch[0], MAX_BODY_BYTES="5000", MAX_BATCH="30")
    rejections: list[dict[str, Any]] = []
    with Client(server.url, user_id=user.id, on_rejected=rejections.append) as client:
        record(client, *range(100))
        client.record("x" * 6000, 1)
        record(client, *range(100, 110))
    assert user.values == list(range(110))
    assert [rejection["code"] for rejection in rejections] == ["payload_too_large"]


def test_the_queue_is_bounded_and_the_oldest_go(proxy: RecordingProxy, user: User) -> None:
    proxy.down = True
    dropped: list[int] = []
    with Client(proxy.url, user_id=user.id, max_queue=10, on_dropped=dropped.append) as client:
        record(client, *range(25))
        proxy.down = False
    assert sum(dropped) == 15
    assert user.values == list(range(15, 25))


def test_close_gives_up_in_time_and_says_how_many_it_drops(proxy: RecordingProxy, user: User) -> None:
    proxy.troubles = [stalled(5)] * 3
    dropped: list[int] = []
    client = Client(proxy.url, user_id=user.id, exit_s=1, on_dropped=dropped.append)
    record(client, 1, 2, 3)
    begun = time.monotonic()
    assert client.close() is False
    assert time.monotonic() - begun < 3
    assert client.close() is True
    assert dropped == [3]


def test_callbacks_that_raise_do_not_end_the_client(
    proxy: RecordingProxy, user: User, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_error(_: object) -> None:
        raise ValueError("the caller's own")

    with Client(proxy.url, user_id=user.id, max_queue=1, on_rejected=raise_error, on_dropped=raise_error) as client:
        record(client, 0, -1)
        client.flush()
        record(client, 2)
    assert user.values == [2]
    assert caplog.text.count("a callback failed") == 2


def test_a_callback_may_use_the_client(proxy: RecordingProxy, user: User) -> None:
    def correct(rejection: dict[str, Any]) -> None:
        client.record("talked_time", -rejection["metric"]["value"])
        assert client.flush() is False  # it cannot wait for itself

    client = Client(proxy.url, user_id=user.id, on_rejected=correct)
    record(client, -1)
    client.flush(10)
    eventually(lambda: user.values == [1])
    assert client.close()


def test_many_threads_record_and_flush_at_once(proxy: RecordingProxy, user: User) -> None:
    with Client(proxy.url, user_id=user.id, max_batch=20, flush_s=0.05) as client:

        def work(first: int) -> None:
            for value in range(first, first + 100):
                client.record("talked_time", value)
                if value % 30 == 0:
                    client.flush(10)

        threads = [threading.Thread(target=work, args=(number * 100,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert user.values == list(range(800))
    assert proxy.most_at_once == 1


def script(proxy: RecordingProxy, user: User, body: str) -> subprocess.Popen[str]:
    """Run a program that has a client."""
    head = (
        "import os, signal, sys, time, multiprocessing, threading\nfrom metrics_ingest.client import Client\n"
        f"client = Client({proxy.url!r}, user_id={user.id!r}, flush_s=60)\n"
        "def record(value): client.record('talked_time', value)\n"
    )
    command = [sys.executable, "-W", "error", "-c", head + body]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


@pytest.mark.parametrize(
    ("body", "stored", "exit_code"),
    [
        pytest.param("record(1)", [1], 0, id="the end of the program"),
        pytest.param("record(1); sys.exit(3)", [1], 3, id="sys.exit"),
        pytest.param("record(1); raise ValueError('x')", [1], 1, id="an exception"),
        pytest.param("record(1); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", [1], 143, id="SIGTERM"),
        pytest.param(
            "record(1)\nif (pid := os.fork()) == 0:\n  record(2)\n  sys.exit()\nrecord(3); os.waitpid(pid, 0)",
            [1, 2, 3], 0, id="fork",
        ),
        pytest.param(
            "record(1)\np = multiprocessing.get_context('fork').Process(target=record, args=(2,))\np.start(); p.join()",
            [1, 2], 0, id="multiprocessing",
        ),
        pytest.param(
            "p = multiprocessing.get_context('fork').Pool(2)\np.map(record, range(20)); p.terminate(); p.join()",
            list(range(20)), 0, id="multiprocessing.Pool, which sends SIGTERM twice",
        ),
        pytest.param("import atexit; atexit.register(record, 1)", [1], 0, id="recorded by atexit"),
        pytest.param(
            "t = threading.Thread(target=lambda: (time.sleep(0.3), record(1)))\nt.start()", [1], 0, id="a thread's last"
        ),
        pytest.param(
            "import uvicorn\nasync def app(scope, receive, send):\n  pass\n"
            "threading.Timer(1, lambda: (record(1), os.kill(os.getpid(), signal.SIGTERM))).start()\n"
            "uvicorn.run(app, port=0, log_level='critical', lifespan='off')",
            [1], 143, id="uvicorn, which raises SIGTERM again",
        ),
    ],
)  # fmt: skip
def test_what_was_recorded_is_sent_before_the_process_ends(
    proxy: RecordingProxy, user: User, body: str, stored: list[float], exit_code: int
) -> None:
    process = script(proxy, user, body)
    _, errors = process.communicate(timeout=60)
    assert user.values == stored, errors
    assert process.returncode == exit_code, errors
    assert sum(reply["duplicates"] for reply in proxy.replies) == 0


def test_a_handler_for_sigterm_that_is_set_already_stays(proxy: RecordingProxy, user: User) -> None:
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); Client('http://localhost', user_id=1)\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"
    )
    process = script(proxy, user, body)
    process.communicate(timeout=60)
    assert process.returncode == 7


def test_the_default_action_of_sigterm_stays_on_request() -> None:
    body = (
        "import signal; from metrics_ingest.client import Client\n"
        "Client('http://localhost', exit_on_sigterm=False); assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL"
    )
    subprocess.run([sys.executable, "-c", body], check=True)


def test_it_imports_no_other_part() -> None:
    check = (
        "import sys, metrics_ingest.client\n"
        "print(sorted(name for name in sys.modules if name.startswith('metrics_ingest')))\n"
        "assert not {'pg8000', 'pydantic', 'starlette', 'uvicorn', 'functions_framework'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    wing = ["metrics_ingest.client", *(f"metrics_ingest.client.{name}" for name in ("client", "process", "transport"))]
    assert done.stdout.strip() == str(["metrics_ingest", *wing])
