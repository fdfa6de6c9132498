"""POST /users/ with an array: many users, each accounted for by its position."""

from typing import Any
from uuid import uuid4

import pytest
import requests

from support.problems import check_problem
from support.processes import Stack


def post(stack: Stack, users: Any, **headers: str) -> requests.Response:
    return requests.post(f"{stack.users.url}/users/", json=users, headers=headers, timeout=30)


def test_every_user_is_accounted_for(stack: Stack) -> None:
    known, changed, new = (str(uuid4()) for _ in range(3))
    for user_id in (known, changed):
        assert post(stack, {"user_id": user_id, "name": "Greg", "email": "greg@gmail.com"}).status_code == 201
    answer = post(
        stack,
        [
            {"user_id": known, "name": "Greg"},
            {"user_id": changed, "name": "Gregor"},
            {"user_id": "x", "name": "Bad"},
            {"user_id": new, "name": "New", "email": "new@gmail.com"},
            {"name": ""},
            "text",
            {"name": "Without an id"},
        ],
    )
    assert answer.status_code == 207
    body = answer.json()
    counts = {name: body[name] for name in ("received", "stored", "created", "duplicates", "rejected")}
    assert counts == {"received": 7, "stored": 3, "created": 2, "duplicates": 1, "rejected": 3}
    assert body["message"] == "3 of 7 users stored"
    assert [(error["index"], error["code"], error["field"]) for error in body["errors"]] == [
        (2, "invalid_uuid", "user_id"), (4, "invalid_field", "name"), (5, "invalid_field", None)
    ]  # fmt: skip
    rows = stack.query(
        "SELECT name, email FROM users WHERE user_id = ANY (CAST(:ids AS uuid[])) ORDER BY name",
        ids=[known, changed, new],
    )
    assert rows == [["Greg", "greg@gmail.com"], ["Gregor", "greg@gmail.com"], ["New", "new@gmail.com"]]


def test_same_array_again_changes_nothing(stack: Stack) -> None:
    users = [{"user_id": str(uuid4()), "name": f"User {n}"} for n in range(1_500)]
    first, second = post(stack, users).json(), post(stack, users).json()
    assert (first["stored"], first["created"], first["duplicates"]) == (1_500, 1_500, 0)
    assert (second["stored"], second["created"], second["duplicates"]) == (0, 0, 1_500)


def test_key_gives_the_same_ids_again(stack: Stack) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    name = f"Keyed {uuid4()}"
    for created in (3, 0):
        assert post(stack, [{"name": name}] * 3, **key).json()["created"] == created
    assert stack.query("SELECT count(*) FROM users WHERE name = :name", name=name) == [[3]]


def test_user_that_is_there_twice_ends_as_the_last(stack: Stack) -> None:
    user_id = str(uuid4())
    answer = post(stack, [{"user_id": user_id, "name": "first"}, {"user_id": user_id, "name": "last"}])
    assert (answer.json()["created"], answer.json()["stored"]) == (1, 2)
    assert stack.query("SELECT name FROM users WHERE user_id = :u", u=user_id) == [["last"]]


@pytest.mark.parametrize(
    ("users", "status", "code"),
    [([], 422, "empty_batch"), ([{"name": "x"}] * 10_001, 413, "too_many_metrics")],
    ids=["none", "too many"],
)
def test_array_of_a_wrong_size_is_refused(stack: Stack, users: Any, status: int, code: str) -> None:
    answer = post(stack, users)
    assert answer.status_code == status
    check_problem(answer, code)


def test_all_rejected_is_422_and_a_thousand_faults_are_listed(stack: Stack) -> None:
    answer = post(stack, [{"name": ""}] * 1_200)
    body = answer.json()
    assert (answer.status_code, body["rejected"], len(body["errors"])) == (422, 1_200, 1_000)
    assert body["errors_omitted"] == 200


def test_user_whose_erasure_is_under_way_is_rejected_alone(stack: Stack) -> None:
    erased, other = str(uuid4()), str(uuid4())
    stack.query("INSERT INTO user_erasures (user_id) VALUES (CAST(:u AS uuid))", u=erased)
    try:
        answer = post(stack, [{"user_id": erased, "name": "a"}, {"user_id": other, "name": "b"}])
    finally:
        stack.query("DELETE FROM user_erasures WHERE user_id = :u", u=erased)
    body = answer.json()
    assert (answer.status_code, body["created"], body["rejected"]) == (207, 1, 1)
    assert [(error["index"], error["code"]) for error in body["errors"]] == [(0, "store_unavailable")]
