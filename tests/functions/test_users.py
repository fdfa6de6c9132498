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
    assert second.json() == {**first.json(), "name": "O'Greg \\"}


def test_email_stays_until_another_or_null_is_sent(stack: Stack) -> None:
    user = {"name": "Greg", "user_id": str(uuid4())}
    sent: list[tuple[dict[str, Any], str | None]] = [
        ({}, None), ({"email": "a@x.de"}, "a@x.de"), ({}, "a@x.de"), ({"email": "b@x.de"}, "b@x.de"),
        ({"email": None}, None), ({}, None),
    ]  # fmt: skip
    for change, stored in sent:
        assert post(stack, user | change).json()["email"] == stored
        assert stack.query("SELECT email FROM users WHERE user_id = :u", u=user["user_id"]) == [[stored]]


def test_null_for_an_optional_field_is_the_same_as_leaving_it_out(stack: Stack) -> None:
    answer = post(stack, {"name": "Greg", "email": None, "user_id": None})
    assert answer.status_code == 201
    assert UUID(answer.json()["user_id"]).version == 4


@pytest.mark.parametrize(
    "email", ["a@x.test", "A@my.LOCAL", "a@localhost", "a@b.localhost", "a@x.invalid", "a@x.example", "ü@x.test"]
)
def test_addresses_that_reach_nobody_are_accepted(stack: Stack, email: str) -> None:
    answer = post(stack, {"name": "Greg", "email": email})
    assert answer.status_code == 201, answer.text
    assert answer.json()["email"].lower() == email.lower()


@pytest.mark.parametrize(
    "body",
    [
        '{"name":"a","name":"b"}',
        '{"name":"a, b","email":null,"n\\u0061me":"a, b"}',
        '{"name":",","x":[1,2],"name":"x"}',
    ],
)
def test_field_sent_twice_is_refused(stack: Stack, body: str) -> None:
    check_problem(requests.post(stack.users.url, data=body, timeout=10), "invalid_field", "name")


def test_name_with_commas_is_no_repeated_field(stack: Stack) -> None:
    assert post(stack, {"name": 'Greg, Jr., "the, other"'}).json()["name"] == 'Greg, Jr., "the, other"'


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
            for email in ("", "greg", "a@b", "a b@c.de", "a@test", "a b@x.test", "a@.test", "@x.local", 7)
        ),
    ],
    ids=repr,
)
def test_user_that_breaks_a_rule(stack: Stack, user: Any, code: str, field: str) -> None:
    check_problem(post(stack, user), code, field)


def test_name_may_have_200_characters(stack: Stack) -> None:
    assert post(stack, {"name": "ß" * 200}).status_code == 201
