"""The browser client and what it is answered: each metric counts as stored only when the function says so."""

import email.utils
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from typing import Any

import pytest

from clients.browsers import Scene, hide, record, settle, wait_for
from clients.disturbances import answer_cut, answer_lost, between, no_answer, reply
from metrics_ingest.admin.keys import new_key
from support.processes import Server

UNLISTED = b'{"received": 3, "stored": 2, "duplicates": 0, "rejected": 1, "errors": [], "errors_omitted": 1}'


def test_metrics_that_are_refused_are_reported_once_by_code(scene: Scene) -> None:
    page = scene.open()
    page.evaluate("""() => {
      client.record("talked_time", 1);
      client.record("talked_time", -1);
      client.record("shoe_size", 44);
    }""")
    wait_for(page, lambda: len(scene.site.reports) == 2)
    record(page, -2)  # now all of a batch are refused: 422
    wait_for(page, lambda: len(scene.site.reports) == 3)
    page.wait_for_timeout(500)
    reported = [(report["code"], report["metric"]["value"]) for report in scene.site.reports]
    assert sorted(reported) == [("unknown_metric_type", 44), ("value_out_of_range", -2), ("value_out_of_range", -1)]
    assert scene.user.values == [1]
    assert len(scene.proxy.requests) == 2


@pytest.mark.parametrize("status", [207, 422])
def test_refusals_that_are_not_listed_are_asked_for_again(scene: Scene, status: int) -> None:
    """A function that is short of memory lists none: to take the refused metric for a stored one would lose it."""
    page = scene.visit()
    scene.proxy.troubles = [lambda handler, _: reply(handler, status, UNLISTED)]
    scene.begin(page)
    record(page, 1, -1, 2)
    wait_for(page, lambda: scene.site.reports)
    assert [(report["code"], report["metric"]["value"]) for report in scene.site.reports] == [
        ("value_out_of_range", -1)
    ]
    assert scene.user.values == [1, 2]


@pytest.mark.parametrize("trouble", [no_answer, answer_lost, answer_cut])
def test_without_an_answer_the_same_metrics_are_sent_again(scene: Scene, trouble: Any) -> None:
    """Three times, because Chromium itself repeats a request once when a connection that it used before is closed."""
    page = scene.visit()
    scene.proxy.troubles = [trouble] * 3
    scene.begin(page)
    record(page, 1, 2)
    wait_for(page, lambda: scene.proxy.replies)
    assert all(request.lines == scene.proxy.requests[0].lines for request in scene.proxy.requests)
    assert scene.proxy.replies[0]["duplicates"] == (0 if trouble is no_answer else 2)
    assert scene.user.values == [1, 2]


@pytest.mark.parametrize("body", [b"<h1>Sign in to this network</h1>", b'{"data": null, "errors": []}', b"null"])
@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_proxys_own_answer_counts_as_none(scene: Scene, status: int, body: bytes) -> None:
    """A 404 is final for this page; the next page sends what was kept."""
    page = scene.visit()
    scene.proxy.troubles = [lambda handler, _: reply(handler, status, body)]
    scene.begin(page)
    record(page, 1)
    if status == 404:
        wait_for(page, lambda: scene.site.reports)
        assert scene.site.reports[0]["code"] == "http_404"
        scene.reload(page)
    wait_for(page, lambda: scene.user.values == [1])


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_for_every_tab(scene: Scene, form: str) -> None:
    def unavailable(handler: BaseHTTPRequestHandler, _: object) -> None:
        now = time.time()
        after = "3" if form == "seconds" else email.utils.formatdate(now + 4, usegmt=True)
        reply(handler, 503, b"", Retry_After=after, Date=email.utils.formatdate(now, usegmt=True))

    page, other = scene.visit(), scene.visit()
    scene.begin(page)
    scene.begin(other)
    scene.proxy.troubles = [unavailable]
    record(page, 1)
    wait_for(page, lambda: scene.proxy.requests)
    settle(page)
    page.wait_for_timeout(200)  # until the other tabs can read how long
    record(other, 2)
    assert other.evaluate("client.flush()") is False
    hide(page)
    hide(other)
    wait_for(page, lambda: scene.user.values == [1, 2])
    assert 2.9 < scene.proxy.requests[1].time - scene.proxy.requests[0].time < 9


def test_the_wait_grows_and_is_jittered(scene: Scene) -> None:
    page = scene.visit("Math.random = () => 0.5")
    scene.proxy.troubles = [lambda handler, _: reply(handler, 503, b"")] * 3
    scene.begin(page)
    record(page, 1)
    wait_for(page, lambda: len(scene.proxy.requests) == 4)
    times = [request.time for request in scene.proxy.requests]
    waits = [after - before for before, after in pairwise(times)]
    assert all(wait <= measured < wait + 0.5 for wait, measured in zip((1.5, 3, 6), waits, strict=True)), waits


def test_what_is_recorded_while_a_request_fails_waits_with_it(scene: Scene) -> None:
    def late(handler: BaseHTTPRequestHandler, _: object) -> None:
        time.sleep(0.7)
        reply(handler, 503, b"")

    page = scene.visit("Math.random = () => 0.5")
    scene.proxy.troubles = [late]
    scene.begin(page)
    record(page, 1)
    wait_for(page, lambda: scene.proxy.requests)
    record(page, 2)
    assert page.evaluate("client.flush()") is False
    wait_for(page, lambda: scene.user.values == [1, 2])
    first, second = scene.proxy.requests
    assert 1.5 < second.time - first.time < 4


def test_a_refused_key_stops_once_and_keeps_the_queue(scene: Scene, serve: Callable[..., Server]) -> None:
    key, entry = new_key("web")
    server = serve("ingest_batch", scene.user.url, CORS_ORIGINS="*", API_KEYS=entry, ALLOW_ANONYMOUS="false")
    with between(server.url) as scene.proxy:
        page = scene.open(key="wrong")
        record(page, 1)
        wait_for(page, lambda: scene.site.reports)
        for value in (2, 3):
            record(page, value)
            assert page.evaluate("client.flush()") is False
            page.wait_for_timeout(500)
        assert [(report["code"], report["metric"]) for report in scene.site.reports] == [("unauthorized", None)]
        assert len(scene.proxy.requests) == 1
        scene.reload(page, key=key)
        wait_for(page, lambda: scene.user.values == [1, 2, 3])


def test_a_body_over_the_limit_is_halved_and_a_single_one_is_reported(
    scene: Scene, serve: Callable[..., Server]
) -> None:
    server = serve("ingest_batch", scene.user.url, CORS_ORIGINS="*", MAX_BODY_BYTES="5000", MAX_BATCH="30")
    with between(server.url) as scene.proxy:
        scene.proxy.down = True  # so that they are sent together
        page = scene.open()
        record(page, *range(100))
        page.evaluate("client.record('x'.repeat(6000), 1)")
        record(page, *range(100, 110))
        page.wait_for_timeout(300)
        scene.proxy.down = False
        wait_for(page, lambda: len(scene.user.values) == 110 and scene.site.reports)
        assert [report["code"] for report in scene.site.reports] == ["payload_too_large"]


def test_a_function_that_never_answers_is_given_up(scene: Scene) -> None:
    faster = "const timeout = AbortSignal.timeout; AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 30)"
    page = scene.visit(faster)
    scene.proxy.troubles = [lambda *_: time.sleep(5)]
    scene.begin(page)
    record(page, 1)
    wait_for(page, lambda: scene.user.values == [1], 4)


def test_offline_and_back_online(scene: Scene) -> None:
    page = scene.open("Math.random = () => 0.999")  # so that it waits for 2, 4 and 8 seconds
    scene.context.set_offline(True)
    for value in range(3):
        record(page, value)
        page.wait_for_timeout(1000)
    assert scene.user.values == []
    scene.context.set_offline(False)
    wait_for(page, lambda: scene.user.values == [0, 1, 2], 1)
