"""POST /users/: the users whom metrics belong to."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests

from support.problems import check_problem
from support.processes import Stack


def post(stack: Stack, user: Any, **headers: str) -> requests.Response:
    return requests.post(f"{stack.users.url}/users/", json=user, headers=headers, timeout=10)


def test_new_user_is_created(stack: Stack) -> None:
    user_id = str(uuid4())
    answer = post(stack, {"name": "Greg", "email": "greg@gmail.com", "user_id": user_id})
    body = answer.json()
    assert answer.status_code == 201
    assert {**body, "created_at": None} == {
        "user_id": user_id,
        "name": "Greg",
        "email": "greg@gmail.com",
        "created_at": None,
    }
    assert abs(datetime.fromisoformat(body["created_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert stack.query("SELECT name, email FROM users WHERE user_id = :u", u=user_id) == [["Greg", "greg@gmail.com"]]


def test_user_without_an_id_gets_one(stack: Stack) -> None:
    answer = post(stack, {"name": "Zoë 🎧"})
    assert answer.status_code == 201
    assert UUID(answer.json()["user_id"]).version == 4
    assert (answer.json()["name"], answer.json()["email"]) == ("Zoë 🎧", None)


def test_known_user_is_updated(stack: Stack) -> None:
    user_id = str(uuid4())
    first = post(stack, {"name": "Greg", "email": "greg@gmail.com", "user_id": user_id})
    second = post(stack, {"name": "O'Greg \\", "user_id": user_id})
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == {**first.json(), "name": "O'Greg \\", "email": None}


def test_retry_with_an_idempotency_key_is_the_same_user(stack: Stack) -> None:
    first, second = (
        post(stack, {"name": "Greg"}, **{"Idempotency-Key": str(uuid4())[:0] + "sign-up-1"}) for _ in range(2)
    )
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["user_id"] == second.json()["user_id"]


def test_one_user_registered_at_once_is_created_once(stack: Stack) -> None:
    user = {"name": "Greg", "user_id": str(uuid4())}
    with ThreadPoolExecutor(20) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: post(stack, user), range(40))]
    assert sorted(set(statuses)) == [200, 201]
    assert statuses.count(201) == 1


@pytest.mark.parametrize(
    ("user", "code", "field"),
    [
        ({}, "missing_field", "name"),
        ({"name": "Greg", "age": 4}, "unknown_field", "age"),
        ({"name": "Greg", "user_id": "greg"}, "invalid_uuid", "user_id"),
        ({"name": "Greg", "user_id": "00000000-0000-0000-0000-000000000000"}, "invalid_uuid", "user_id"),
        *(({"name": name}, "invalid_field", "name") for name in ("", "   ", "x" * 201, "a\x00b", "a\nb", 7, None)),
        *(
            ({"name": "Greg", "email": email}, "invalid_field", "email")
            for email in ("", "greg", "a@b", "a b@c.de", 7, None)
        ),
    ],
    ids=repr,
)
def test_user_that_breaks_a_rule(stack: Stack, user: Any, code: str, field: str) -> None:
    check_problem(post(stack, user), code, field)


def test_name_may_have_200_characters(stack: Stack) -> None:
    assert post(stack, {"name": "ß" * 200}).status_code == 201
