"""POST /ingest_batch/: every metric is accounted for, by its position."""

import gzip
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests

from metrics_ingest.http.headers import prefers_strict
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from support.problems import check_problem
from support.processes import Stack, eventually

NDJSON = {"Content-Type": "application/x-ndjson"}
STRICT = {"Prefer": "handling=strict"}


def post(stack: Stack, body: bytes | str, **headers: str) -> requests.Response:
    """POST bytes to /ingest_batch/."""
    data = body if isinstance(body, bytes) else body.encode()
    return requests.post(f"{stack.ingest_batch.url}/ingest_batch/", data=data, headers=headers, timeout=60)


def several(metric: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Copies of a metric, each an event of its own."""
    return [metric | {"metric_id": str(uuid4()), "value": position} for position in range(count)]


def account(answer: requests.Response) -> tuple[int, int, int, int, int]:
    """Status, received, stored, duplicates and rejected of an answer whose sums and shape are right."""
    report = answer.json()
    refused = answer.status_code == 422 and "Preference-Applied" in answer.headers
    only_then = {"valid"} if refused else set()
    assert set(report) == {"message", "received", "stored", "duplicates", "rejected", "errors"} | only_then, report
    received, stored, duplicates, rejected = (report[n] for n in ("received", "stored", "duplicates", "rejected"))
    assert report["message"] == f"{stored} of {received} metrics stored"
    assert answer.headers["Content-Type"] == "application/json"
    indexes = [error["index"] for error in report["errors"]]
    assert indexes == sorted(indexes)
    assert len(set(indexes)) == rejected
    assert all(set(error) == {"index", "code", "field", "metric_id", "detail"} for error in report["errors"])
    assert rejected + stored + duplicates + report.get("valid", 0) == received
    return answer.status_code, received, stored, duplicates, rejected


def faults(answer: requests.Response) -> list[tuple[int, str, str | None]]:
    """Index, code and field of each error."""
    return [(error["index"], error["code"], error["field"]) for error in answer.json()["errors"]]


def lines(metrics: list[dict[str, Any]], end: str = "\n") -> str:
    """NDJSON."""
    return "".join(json.dumps(one) + end for one in metrics)


# What is read


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        (json.dumps, {}),
        (json.dumps, {"Content-Type": "application/json; charset=utf-8"}),
        (json.dumps, {"Content-Type": "application/json; profile=application/x-ndjson"}),
        (lambda sent: json.dumps({"metrics": sent}), {}),
        (lambda sent: " \r\n\t" + json.dumps({"metrics": sent}, indent=2) + "\n", {}),
        (lines, NDJSON),
        (lines, {"Content-Type": "Application/X-NDJSON ; charset=utf-8"}),
        (lines, {"Content-Type": "application/ndjson"}),
        (lines, {"Content-Type": "application/JSONL; charset=utf-8"}),
        (lines, {"Content-Type": "application/jsonlines"}),
        (lines, {"Content-Type": "application/x-jsonlines"}),
        (json.dumps, {"Content-Type": ""}),
        (lambda sent: "\ufeff" + json.dumps(sent), {}),
        (lambda sent: "\ufeff" + lines(sent), NDJSON),
        (lambda sent: lines(sent).rstrip(), NDJSON),
        (lambda sent: lines(sent, "\r\n"), NDJSON),
        (lambda sent: "\n \r\n" + lines(sent, " \n\t\n\n"), NDJSON),
    ],
)
@pytest.mark.parametrize("packed", [None, {}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip by its bytes", "gzip"])
def test_forms_of_a_batch(
    stack: Stack, metric: dict[str, Any], form: Any, headers: dict[str, str], packed: dict[str, str] | None
) -> None:
    sent = several(metric, 3)
    body = form(sent).encode()
    if packed is not None:
        body, headers = gzip.compress(body), {**headers, **packed}
    answer = post(stack, body, **headers)
    assert account(answer) == (200, 3, 3, 0, 0)
    assert answer.json()["errors"] == []
    assert "Preference-Applied" not in answer.headers
    assert {(str(row[2]), row[5]) for row in stack.stored(metric["user_id"])} == {
        (one["metric_id"], one["value"]) for one in sent
    }


def test_batch_of_one_and_of_what_may_be_left_out(stack: Stack, metric: dict[str, Any]) -> None:
    del metric["metric_id"]
    assert account(stack.send_batch([metric])) == (200, 1, 1, 0, 0)
    assert account(stack.send_batch([metric] * 3)) == (200, 3, 3, 0, 0)
    assert len(stack.stored(metric["user_id"])) == 4


@pytest.mark.parametrize(
    ("again", "field"),
    [
        ('"value": 99, ', "value"),
        ('"value" :99,', "value"),
        ('"value": "{\\"}", ', "value"),
        ('"v\\u0061lue": 99, ', "value"),
        ('"value": [1, {"a": 1, "a": 2}], ', "value"),
        ('"session_id": null, "session_id": null, ', "session_id"),
        ('"metric_id": null, ', "metric_id"),
    ],
)
def test_field_sent_twice_is_refused_and_shifts_nothing(
    stack: Stack, metric: dict[str, Any], again: str, field: str
) -> None:
    """Beside a text with commas, too, which is what tells that a field may be sent twice."""
    first, second, third = (json.dumps(one) for one in several(metric, 3))
    twice = second.replace("{", "{" + again, 1)
    for body, headers in (
        (f"[{first},{twice},{third}]", {}),
        (f'{{"metrics": [{first},{twice},{third}]}}', {}),
        (f"{first}\n{twice}\n{third}", NDJSON),
        (f'[{first},{twice},{{"mood": ",,,"}}]', {}),
    ):
        answer = post(stack, body, **headers)
        assert answer.json()["errors"][0] == {
            "index": 1, "code": "invalid_field", "field": field, "detail": f"{field} is sent more than once",
            "metric_id": None if field == "metric_id" else json.loads(second)["metric_id"],
        }  # fmt: skip
        assert [index for index, _, _ in faults(answer) if index < 2] == [1]
    assert len(stack.stored(metric["user_id"])) == 2


def test_envelope_with_metrics_twice_is_refused(stack: Stack, metric: dict[str, Any]) -> None:
    one = json.dumps([metric])
    check_problem(post(stack, f'{{"metrics": {one}, "metrics": {one}}}'), "invalid_field", "metrics")
    assert stack.stored(metric["user_id"]) == []


# What is refused as a whole


@pytest.mark.parametrize(
    "body", [b"", b" ", b"{", b"[", b"[1", b"nonsense", b"[1]]", b'{"metrics":[}', b"\xff"], ids=repr
)
def test_document_that_is_no_json(stack: Stack, body: bytes) -> None:
    check_problem(post(stack, body), "malformed_json")


def test_broken_encodings(stack: Stack, metric: dict[str, Any]) -> None:
    body = json.dumps([metric]).encode()
    for wrong in (b" \xef\xbb\xbf" + body, body.decode().encode("utf-16"), body.replace(b"talked", b"\xfftalked")):
        check_problem(post(stack, wrong), "malformed_json")
    for cut in (body, gzip.compress(body)[:-9], b""):
        check_problem(post(stack, cut, **{"Content-Encoding": "gzip"}), "malformed_json")
    check_problem(post(stack, b"", **NDJSON), "malformed_json")


def test_ndjson_sent_as_json_is_named(stack: Stack, metric: dict[str, Any]) -> None:
    body = lines(several(metric, 2))
    for url in (stack.ingest_batch.url, stack.ingest.url):
        problem = check_problem(requests.post(url, data=body, timeout=10), "malformed_json")
        assert "application/x-ndjson" in problem["detail"]
    check_problem(post(stack, lines(several(metric, 1))), "missing_field", "metrics")  # one object is no batch


@pytest.mark.parametrize(("body", "headers"), [("[]", {}), ('{"metrics":[]}', {}), ("\n", NDJSON), (" \r\n\n", NDJSON)])
def test_empty_batch(stack: Stack, body: str, headers: dict[str, str]) -> None:
    check_problem(post(stack, body, **headers), "empty_batch")


@pytest.mark.parametrize("body", ["null", "5", '"text"', "true"])
def test_document_that_is_no_batch(stack: Stack, body: str) -> None:
    check_problem(post(stack, body), "invalid_field")


@pytest.mark.parametrize("wrong", [None, 5, "text", {}, True])
def test_envelope_without_a_list(stack: Stack, wrong: object) -> None:
    check_problem(stack.send_batch({"metrics": wrong}), "invalid_field", "metrics")


def test_envelope_with_other_fields(stack: Stack, metric: dict[str, Any]) -> None:
    check_problem(stack.send_batch({}), "missing_field", "metrics")
    check_problem(stack.send_batch({"metrics": [metric], "sent_by": "me"}), "unknown_field", "sent_by")
    check_problem(stack.send_batch({"metrics": [], "sent_by": "me"}), "unknown_field", "sent_by")
    problem = check_problem(stack.send_batch(metric), "missing_field", "metrics")
    assert len(problem["errors"]) == 1  # not one for each field of the metric
    assert stack.stored(metric["user_id"]) == []


def test_too_many_metrics(stack: Stack, serve: Any, metric: dict[str, Any]) -> None:
    server = serve("ingest_batch", stack.database_url, MAX_BATCH="3")
    sent = several(metric, 4)
    for body, headers in (
        (json.dumps(sent), {}),
        (json.dumps({"metrics": sent}), {}),
        (json.dumps([*sent[:3], 5]), {}),
        (lines(sent), NDJSON),
        ("x\n" * 4, NDJSON),
    ):
        answer = requests.post(server.url, data=body, headers=headers, timeout=10)
        assert "at most 3 metrics" in check_problem(answer, "too_many_metrics")["detail"]
    assert stack.stored(metric["user_id"]) == []
    assert account(requests.post(server.url, data="\n\n" + lines(sent[:3], "\n\n"), headers=NDJSON, timeout=10))[2] == 3


@pytest.mark.parametrize("media_type", ["text/plain", "application/jsonl2", "application/json-seq"])
def test_media_type_that_is_not_read(stack: Stack, metric: dict[str, Any], media_type: str) -> None:
    detail = check_problem(post(stack, json.dumps([metric]), **{"Content-Type": media_type}), "unsupported_media_type")
    assert "application/json or application/x-ndjson" in detail["detail"]


# What is refused of a batch


def test_items_that_are_no_metrics_are_told_by_their_position(stack: Stack, metric: dict[str, Any]) -> None:
    first, second = several(metric, 2)
    odd = [first, [], None, 1, "text", [[first]], [first], second, True, 1.5]
    for answer in (stack.send_batch(odd), post(stack, "\n".join(map(json.dumps, odd)), **NDJSON)):
        assert account(answer)[::4] == (207, 8)
        assert faults(answer) == [(index, "invalid_field", None) for index in (1, 2, 3, 4, 5, 6, 8, 9)]
    assert len(stack.stored(metric["user_id"])) == 2


def test_payload_faults_and_the_databases_make_one_list(stack: Stack, metric: dict[str, Any]) -> None:
    stranger = str(uuid4())
    changes: list[dict[str, Any]] = [
        {"metric_type": "unheard_of"},
        {"value": "1"},
        {},
        {"user_id": stranger, "metric_type": "unheard_of"},
        {"mood": 1, "timestamp": "x", "metric_type": 7},
        {"value": 86401},
        {"timestamp": "1999-01-01T00:00:00Z", "metric_id": "x"},
        {"user_id": stranger, "value": -1},
        {"timestamp": "2099-01-01T00:00:00Z"},
        {"user_id": "00000000-0000-0000-0000-000000000000", "timestamp": "2099-01-01T00:00:00Z", "mood": 1},
        {"value": None, "metric_id": str(uuid4()).upper()},
    ]
    sent = [{**metric, "metric_id": str(uuid4()), **change} for change in changes]
    expected = [
        (0, "unknown_metric_type", "metric_type"),
        (1, "invalid_value", "value"),
        (3, "unknown_user", "user_id"),
        (3, "unknown_metric_type", "metric_type"),
        (4, "invalid_metric_type", "metric_type"),
        (4, "invalid_timestamp", "timestamp"),
        (4, "unknown_field", "mood"),
        (5, "value_out_of_range", "value"),
        (6, "timestamp_out_of_range", "timestamp"),
        (6, "invalid_uuid", "metric_id"),
        (7, "unknown_user", "user_id"),
        (7, "value_out_of_range", "value"),
        (8, "timestamp_out_of_range", "timestamp"),
        (9, "unknown_field", "mood"),
        (10, "invalid_value", "value"),
    ]
    for answer in (stack.send_batch(sent), stack.send_batch({"metrics": sent}), post(stack, lines(sent), **NDJSON)):
        assert account(answer)[::4] == (207, 10)
        assert faults(answer) == expected
        for error in answer.json()["errors"]:
            sent_id = sent[error["index"]]["metric_id"]
            assert error["metric_id"] == (str(UUID(sent_id)) if error["index"] != 6 else None)
    assert len(stack.stored(metric["user_id"])) == 1


def test_metric_with_many_unknown_fields_is_told_the_first_of_them(stack: Stack, metric: dict[str, Any]) -> None:
    answer = stack.send_batch([metric | {f"field_{number}": number for number in range(1000)}])
    assert account(answer) == (422, 1, 0, 0, 1)
    assert faults(answer) == [(0, "unknown_field", f"field_{number}") for number in range(10)]


def test_all_rejected_is_422_without_the_database(serve: Any, metric: dict[str, Any]) -> None:
    server = serve("ingest_batch", "postgresql://nobody@127.0.0.1:1/none", WRITE_TIMEOUT_S="0.5")
    for headers in ({}, STRICT):
        answer = requests.post(server.url, json=[{}, {**metric, "value": "x"}], headers=headers, timeout=10)
        assert account(answer) == (422, 2, 0, 0, 2)
    answer = requests.post(server.url, json=[metric, {}], timeout=10)
    check_problem(answer, "store_unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_unreadable_lines_are_rejected_metrics(stack: Stack, metric: dict[str, Any]) -> None:
    first, second, third, fourth = (json.dumps(one) for one in several(metric, 4))
    body = b"\n".join(
        [
            first.encode(),
            b"nonsense",
            b"",
            first.encode() + second.encode(),  # two objects
            first.encode() + b"," + second.encode(),
            first[:50].encode(),  # halves of one
            first[50:].encode(),
            second.encode(),
            b"\xff",
            b"\x0b",
            b"\xef\xbb\xbf" + third.encode(),
            fourth.encode(),
        ]
    )
    answer = post(stack, body, **NDJSON)
    assert account(answer) == (207, 11, 3, 0, 8)
    assert faults(answer) == [(index, "malformed_json", None) for index in (1, 2, 3, 4, 5, 7, 8, 9)]
    assert sorted(row[5] for row in stack.stored(metric["user_id"])) == [0, 1, 3]


@pytest.mark.parametrize(
    "torn", ['{"value":"x|{",', '{"value":[1|{"q":1}],', '{"value":"x}|{",', '{"value":1|'], ids=repr
)
def test_lines_cannot_be_read_as_one_metric(stack: Stack, metric: dict[str, Any], torn: str) -> None:
    """Of a name that is repeated, the first value is not read: an error in it must be found all the same."""
    first, second, third = (json.dumps(one) for one in several(metric, 3))
    head, tail = torn.split("|")
    whole, part = third.split(", ", 1)
    for lines_of_third in ([head, tail + third[1:]], [whole, part]):
        answer = post(stack, "\n".join([f"{first},{second}", *lines_of_third]), **NDJSON)
        assert account(answer) == (422, 3, 0, 0, 3)
        assert faults(answer) == [(index, "malformed_json", None) for index in range(3)]
    assert stack.stored(metric["user_id"]) == []


def test_line_of_two_metrics_is_one_rejected_metric(stack: Stack, metric: dict[str, Any]) -> None:
    first, second, third = (json.dumps(one) for one in several(metric, 3))
    answer = post(stack, f"{first},{second}\n{third}\n", **NDJSON)
    assert account(answer) == (207, 2, 1, 0, 1)
    assert faults(answer) == [(0, "malformed_json", None)]
    assert [row[5] for row in stack.stored(metric["user_id"])] == [2]


# Strict


def test_strict_batch_is_stored_when_all_is_well(stack: Stack, metric: dict[str, Any]) -> None:
    sent = several(metric, 3)
    for expected in ((200, 3, 3, 0, 0), (200, 3, 0, 3, 0)):
        answer = stack.send_batch(sent, **STRICT)
        assert account(answer) == expected
        assert answer.headers["Preference-Applied"] == "handling=strict"
    assert len(stack.stored(metric["user_id"])) == 3


@pytest.mark.parametrize("change", [{"value": "x"}, {"value": -1}, {"user_id": str(uuid4())}])
def test_strict_batch_with_one_fault_stores_nothing(
    stack: Stack, metric: dict[str, Any], change: dict[str, Any]
) -> None:
    known, *sent = several(metric, 4)
    stack.send(known)
    sent[1] |= change
    sessions = stack.query("SELECT count(*) FROM sessions")
    for body in (sent, [known, *sent], [known | {"session_id": str(uuid4())}, *sent]):
        answer = stack.send_batch(body, **STRICT)
        assert account(answer)[:4] == (422, len(body), 0, 0)
        assert answer.headers["Preference-Applied"] == "handling=strict"
    assert answer.json()["rejected"] == 2  # the last one's first is a conflict
    assert len(stack.stored(metric["user_id"])) == 1
    assert stack.query("SELECT count(*) FROM sessions") == sessions


def test_strict_batch_with_payload_faults_is_told_the_databases_too(stack: Stack, metric: dict[str, Any]) -> None:
    sent = several(metric, 5)
    sent[1]["value"] = "x"
    sent[2]["metric_type"] = "unheard_of"
    sent[4]["value"] = -1
    answer = stack.send_batch(sent, **STRICT)
    assert account(answer) == (422, 5, 0, 0, 3)
    assert answer.json()["valid"] == 2
    assert faults(answer) == [
        (1, "invalid_value", "value"),
        (2, "unknown_metric_type", "metric_type"),
        (4, "value_out_of_range", "value"),
    ]
    assert stack.stored(metric["user_id"]) == []


@pytest.mark.parametrize(
    ("wish", "strict"),
    [
        ("handling=strict", True),
        ("HANDLING = Strict", True),
        ('respond-async, wait=5, handling="strict"', True),
        ("handling=strict; with=care", True),
        ("handling=lenient", False),
        ("handling=lenient, handling=strict", False),
        ("handling=strict, handling=lenient", True),
        ("handling", False),
        ("nothandling=strict", False),
        ("handling=very-strict", False),
        ("", False),
    ],
)
def test_wishes_for_strict_handling(wish: str, strict: bool) -> None:
    assert prefers_strict({b"prefer": wish.encode()}) is strict


# Repeats


def test_repeats_in_a_batch_are_duplicates_of_the_first(stack: Stack, metric: dict[str, Any]) -> None:
    other = metric | {"metric_id": str(uuid4())}
    assert account(stack.send_batch([metric, other, metric, metric])) == (200, 4, 2, 2, 0)
    assert account(stack.send_batch([metric, other, metric, metric])) == (200, 4, 0, 4, 0)
    assert len(stack.stored(metric["user_id"])) == 2


@pytest.mark.parametrize(
    "change", [{"value": 99}, {"metric_type": "voice_sentiment", "value": 0.5}, {"session_id": str(uuid4())}]
)
def test_repeat_that_differs_is_a_conflict(stack: Stack, metric: dict[str, Any], change: dict[str, Any]) -> None:
    for expected in ((207, 3, 1, 1, 1), (207, 3, 0, 2, 1)):
        answer = stack.send_batch([metric, metric | change, metric])
        assert account(answer) == expected
        assert faults(answer) == [(1, "metric_conflict", "metric_id")]
        assert answer.json()["errors"][0]["metric_id"] == metric["metric_id"]
    assert [row[5] for row in stack.stored(metric["user_id"])] == [12.34]


def test_repeat_of_a_refused_metric_is_the_first(stack: Stack, metric: dict[str, Any]) -> None:
    answer = stack.send_batch([metric | {"value": -1}, metric, metric | {"value": "x"}])
    assert account(answer) == (207, 3, 1, 0, 2)
    assert faults(answer) == [(0, "value_out_of_range", "value"), (2, "invalid_value", "value")]


@pytest.mark.parametrize("function", ["ingest", "ingest_batch"])
@pytest.mark.parametrize(
    ("value", "commits", "kind"), [(99, True, "conflict"), (12.34, True, "duplicate"), (99, False, "stored")]
)
def test_copy_that_is_being_committed_at_the_same_moment(
    stack: Stack, metric: dict[str, Any], function: str, value: float, commits: bool, kind: str
) -> None:
    """The database waits for the other transaction, and looks at what it has left."""
    stack.send_batch(several(metric, 1))  # so that the session exists
    (((_, timestamp, _, session_id, *_),)) = stack.stored(metric["user_id"])
    rival = connect(read_database({"DATABASE_URL": stack.database_url}), 30)
    try:
        rival.run("BEGIN")
        rival.run(
            "INSERT INTO metrics VALUES (:user_id, :timestamp, :metric_id, :session_id, 'talked_time', :value)",
            user_id=metric["user_id"], timestamp=timestamp, metric_id=metric["metric_id"], session_id=session_id,
            value=value,
        )  # fmt: skip
        blocked = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        with ThreadPoolExecutor(1) as pool:
            send = stack.send if function == "ingest" else lambda one: stack.send_batch([one])
            pending = pool.submit(send, metric)
            try:
                eventually(lambda: stack.query(blocked))
                assert not pending.done()
            finally:
                rival.run("COMMIT" if commits else "ROLLBACK")
            answer = pending.result()
    finally:
        rival.close()
    if function == "ingest":
        assert answer.status_code == (409 if kind == "conflict" else 200)
        assert answer.headers.get("Idempotent-Replayed") == ("true" if kind == "duplicate" else None)
    else:
        assert account(answer)[2:] == (kind == "stored", kind == "duplicate", kind == "conflict")
        assert faults(answer) == ([(0, "metric_conflict", "metric_id")] if kind == "conflict" else [])
    assert len(stack.stored(metric["user_id"])) == 2


# Retries


@pytest.mark.parametrize("headers", [{}, STRICT])
def test_idempotency_key_makes_a_batch_repeatable(
    stack: Stack, metric: dict[str, Any], headers: dict[str, str]
) -> None:
    del metric["metric_id"]
    sent = [metric | {"value": value} for value in range(3)]
    key = {"Idempotency-Key": f"batch-{uuid4()}"}
    assert account(stack.send_batch(sent, **key, **headers)) == (200, 3, 3, 0, 0)
    assert account(stack.send_batch({"metrics": sent}, **key, **headers)) == (200, 3, 0, 3, 0)
    assert account(post(stack, lines(sent), **key, **NDJSON, **headers)) == (200, 3, 0, 3, 0)
    assert account(stack.send_batch(sent, **{"Idempotency-Key": "another"}, **headers)) == (200, 3, 3, 0, 0)
    assert len(stack.stored(metric["user_id"])) == 6


def test_idempotency_key_goes_by_the_position_in_the_request(stack: Stack, metric: dict[str, Any]) -> None:
    """A metric that was rejected, corrected and sent again under the same key does not move the others."""
    del metric["metric_id"]
    sent = [metric | {"value": value} for value in (1, "x", 3)]
    key = {"Idempotency-Key": f"batch-{uuid4()}"}
    assert account(stack.send_batch(sent, **key)) == (207, 3, 2, 0, 1)
    sent[1]["value"] = 2
    assert account(stack.send_batch(sent, **key)) == (200, 3, 1, 2, 0)
    sent[0]["value"] = 4
    answer = stack.send_batch(sent, **key)
    assert account(answer) == (207, 3, 0, 2, 1)
    assert faults(answer) == [(0, "metric_conflict", "metric_id")]
    assert UUID(answer.json()["errors"][0]["metric_id"])


@pytest.mark.parametrize("key", ["", "with space", "é", "k" * 256])
def test_idempotency_key_of_other_characters(stack: Stack, metric: dict[str, Any], key: str) -> None:
    for send in (stack.send, stack.send_batch):
        answer = send(metric, **{"Idempotency-Key": key.encode("latin-1")})  # type: ignore[arg-type]
        check_problem(answer, "invalid_field", "Idempotency-Key")
    assert stack.stored(metric["user_id"]) == []


@pytest.mark.parametrize("function", ["ingest", "ingest_batch"])
def test_request_cut_off_after_its_commit_and_sent_again(stack: Stack, metric: dict[str, Any], function: str) -> None:
    del metric["metric_id"]
    server, key = getattr(stack, function), f"cut-{uuid4()}"
    sent: Any = metric if function == "ingest" else [metric | {"value": value} for value in range(50)]
    count = len(sent) if isinstance(sent, list) else 1
    body = json.dumps(sent).encode()
    head = f"POST /{function}/ HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nIdempotency-Key: {key}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + body)
        eventually(lambda: len(stack.stored(metric["user_id"])) == count)  # committed; nobody reads the answer
    url = f"{server.url}/{function}/"
    answer = requests.post(url, json=sent, headers={"Idempotency-Key": key}, timeout=10)
    if function == "ingest":
        assert (answer.status_code, answer.headers["Idempotent-Replayed"]) == (200, "true")
    else:
        assert account(answer) == (200, count, 0, count, 0)
    assert len(stack.stored(metric["user_id"])) == count
