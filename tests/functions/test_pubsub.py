"""POST …/pubsub: pushed messages are acknowledged once their metrics are stored, or refused and kept."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
import requests

from metrics_ingest.model.metric import METRIC_ID_NAMESPACE
from support.metrics import metric, register
from support.processes import Postgres, Server, Stack, function, query
from support.proxy import Proxy

TYPE = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def pushed(postgres: Postgres) -> Iterator[Stack]:
    """A function of this module's own, because it looks at what was kept."""
    url = postgres.clone()
    with function("ingest_batch", url) as server:
        yield Stack(url, server, server, server)
        assert "internal error" not in server.log


def envelope(data: bytes, message_id: str | None = None, **attributes: str) -> dict[str, Any]:
    """What Pub/Sub pushes."""
    message_id = message_id or uuid4().hex
    return {
        "message": {
            "data": base64.b64encode(data).decode(),
            "messageId": message_id,
            "message_id": message_id,
            "publishTime": "2026-11-26T00:00:00.123Z",
            "publish_time": "2026-11-26T00:00:00.123Z",
            **({"attributes": attributes} if attributes else {}),
        },
        "subscription": "projects/p/subscriptions/s",
    }


def push(server: Server, message: Any, path: str = "/ingest_batch/pubsub", **headers: str) -> requests.Response:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return requests.post(server.url + path, data=body, headers={**TYPE, **headers}, timeout=30)


def acknowledged(answer: requests.Response) -> bool:
    return answer.status_code == 204 and not answer.content and "Content-Length" not in answer.headers


def without_id(user: str, value: float = 1) -> dict[str, Any]:
    found = metric(user, value=value)
    del found["metric_id"]
    return found


def kept(stack: Stack) -> list[tuple[str, bytes]]:
    """Codes and payloads of what was kept, and forget them."""
    rows = query(stack.database_url, "DELETE FROM rejected_metrics RETURNING array_to_string(codes, ' '), payload")
    return sorted((codes, payload) for codes, payload in rows)


FORMS: dict[str, tuple[Callable[[list[Any]], bytes], str]] = {
    "array": (lambda metrics: json.dumps(metrics).encode(), ""),
    "array, declared": (lambda metrics: json.dumps(metrics).encode(), "application/json; charset=utf-8"),
    "envelope": (lambda metrics: json.dumps({"metrics": metrics}, indent=1).encode(), ""),
    "lines": (lambda metrics: b"\n".join(json.dumps(each).encode() for each in metrics), ""),
    "lines, declared": (lambda metrics: b"\n".join(json.dumps(m).encode() for m in metrics), "application/x-ndjson"),
    "lines, of another name": (
        lambda metrics: b"\n".join(json.dumps(m).encode() for m in metrics),
        "application/jsonl",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_form_of_a_batch_is_stored(pushed: Stack, form: str, packed: bool) -> None:
    user = register(pushed.database_url)
    write, content_type = FORMS[form]
    data = write([metric(user, value=number) for number in range(3)])
    attributes = {"content-type": content_type} if content_type else {}
    message = envelope(gzip.compress(data) if packed else data, **attributes)
    assert acknowledged(push(pushed.ingest_batch, message))
    assert sorted(row[5] for row in pushed.stored(user)) == [0, 1, 2]


@pytest.mark.parametrize("indent", [None, 2])
def test_message_may_be_one_metric(pushed: Stack, indent: int | None) -> None:
    user = register(pushed.database_url)
    assert acknowledged(push(pushed.ingest_batch, envelope(json.dumps(metric(user), indent=indent).encode())))
    assert len(pushed.stored(user)) == 1


@pytest.mark.parametrize("path", ["/pubsub", "/pubsub/", "/ingest_batch/pubsub"])
def test_path_may_have_any_prefix(pushed: Stack, path: str) -> None:
    user = register(pushed.database_url)
    assert acknowledged(push(pushed.ingest_batch, envelope(json.dumps([metric(user)]).encode()), path))
    assert len(pushed.stored(user)) == 1


def test_message_that_is_delivered_again_is_stored_once(pushed: Stack) -> None:
    """Its id stands for the ids that its metrics do not have; another message with the same data is another one."""
    user = register(pushed.database_url)
    data = json.dumps([without_id(user), without_id(user)]).encode()
    for _ in range(3):
        assert acknowledged(push(pushed.ingest_batch, envelope(data, "7361250816371245")))
    expected = {uuid5(METRIC_ID_NAMESPACE, f"7361250816371245\n{position}") for position in range(2)}
    assert {UUID(str(row[2])) for row in pushed.stored(user)} == expected
    assert acknowledged(push(pushed.ingest_batch, envelope(data, "7361250816371246")))
    assert len(pushed.stored(user)) == 4


@pytest.mark.parametrize("form", ["array", "envelope", "lines"])
def test_refused_metrics_of_a_message_are_kept_and_the_others_stored(pushed: Stack, form: str) -> None:
    user = register(pushed.database_url)
    kept(pushed)
    metrics = [metric(user), metric(user, value=-1), metric(user, metric_type="unknown"), {"user_id": user}]
    assert acknowledged(push(pushed.ingest_batch, envelope(FORMS[form][0](metrics))))
    assert len(pushed.stored(user)) == 1
    found = [(codes, json.loads(payload)) for codes, payload in kept(pushed)]
    assert found == [
        ("missing_field", metrics[3]),
        ("unknown_metric_type", metrics[2]),
        ("value_out_of_range", metrics[1]),
    ]


HOPELESS: dict[str, tuple[Any, str, bytes]] = {
    "no batch": (envelope(b"5"), "invalid_field", b"5"),
    "no JSON": (envelope(b"["), "malformed_json", b"["),
    "no data": (envelope(b""), "malformed_json", b""),
    "no metrics": (envelope(b"[]"), "empty_batch", b"[]"),
    "an array, declared as lines": (
        envelope(b"[]", **{"content-type": "application/jsonl"}),
        "invalid",
        b"[]",
    ),
    "broken gzip": (envelope(gzip.compress(b"[]")[:-1]), "malformed_json", b'{"message'),
    "a bomb": (envelope(gzip.compress(b" " * 11_000_000)), "payload_too_large", b'{"message'),
    "too many metrics": (envelope(b"[" + b",".join([b"{}"] * 10_001) + b"]"), "too_many_metrics", b"[{},"),
    "far too many values": (envelope(b"[" + b",".join([b"1"] * 400_000) + b"]"), "too_many_metrics", b'{"message'),
    "no base64": ({"message": {"data": "%", "messageId": "1"}}, "invalid_field", b'{"message'),
    "data that is no text": ({"message": {"data": 5, "messageId": "1"}}, "invalid_field", b'{"message'),
    "no message id": ({"message": {"data": ""}}, "missing_field", b'{"message'),
    "no message": ({"x": 1}, "missing_field", b'{"x"'),
    "no envelope": ([1], "missing_field", b"[1]"),
    "no JSON at all": (b"{", "malformed_json", b"{"),
    "a message that is too large": (b" " * 15_000_000, "payload_too_large", b""),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_what_can_never_be_stored_is_acknowledged_and_kept(pushed: Stack, name: str) -> None:
    """A 4xx would be delivered again for days."""
    message, code, payload = HOPELESS[name]
    kept(pushed)
    assert acknowledged(push(pushed.ingest_batch, message))
    ((codes, found),) = kept(pushed)
    assert codes.startswith(code)
    assert found.startswith(payload)


def test_largest_message_of_pubsub_is_taken(pushed: Stack) -> None:
    """Ten million bytes, which are 13.3 million in base64."""
    user = register(pushed.database_url)
    data = json.dumps([metric(user)]).encode()
    assert acknowledged(push(pushed.ingest_batch, envelope(data + b" " * (10_000_000 - len(data)))))
    assert len(pushed.stored(user)) == 1


def test_without_the_database_the_message_is_to_be_delivered_again(database_url: str) -> None:
    user = register(database_url)
    message = envelope(json.dumps([without_id(user)]).encode())
    with Proxy(database_url) as proxy, function("ingest_batch", proxy.url, WRITE_TIMEOUT_S="1") as server:
        proxy.hold()
        answer = push(server, message)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["Retry-After"]
        proxy.release(cut=True)
        assert acknowledged(push(server, message))
        assert acknowledged(push(server, message))
    assert query(database_url, "SELECT count(*) FROM metrics") == [[1]]


def test_message_that_does_not_arrive_is_not_acknowledged(pushed: Stack) -> None:
    kept(pushed)
    assert push(pushed.ingest_batch, b"").status_code == 400
    assert kept(pushed) == []


def test_caller_without_a_key_is_refused(database_url: str, serve: Callable[..., Server]) -> None:
    """401 acknowledges nothing: the messages wait until the subscription is set right."""
    entry = f"app:{hashlib.sha256(b'secret').hexdigest()}"
    server = serve("ingest_batch", database_url, API_KEYS=entry, ALLOW_ANONYMOUS="false")
    message = envelope(json.dumps([metric(register(database_url))]).encode())
    assert push(server, message).status_code == 401
    assert acknowledged(push(server, message, **{"X-API-Key": "secret"}))


def test_many_messages_at_once_are_each_stored_once(pushed: Stack) -> None:
    users = [register(pushed.database_url) for _ in range(20)]
    messages = [envelope(json.dumps([without_id(user)]).encode()) for user in users] * 3
    with ThreadPoolExecutor(16) as pool:
        assert all(acknowledged(answer) for answer in pool.map(lambda m: push(pushed.ingest_batch, m), messages))
    assert [len(pushed.stored(user)) for user in users] == [1] * 20


def test_other_requests_are_batches_as_before(pushed: Stack) -> None:
    user = register(pushed.database_url)
    assert pushed.send_batch([metric(user)]).json()["stored"] == 1
    assert requests.get(f"{pushed.ingest_batch.url}/ingest_batch/pubsub", timeout=10).json()["status"] == "ok"
    refused = requests.post(
        f"{pushed.ingest_batch.url}/pubsub", data=b"", headers={"Content-Type": "text/csv"}, timeout=9
    )
    assert refused.status_code == 415
