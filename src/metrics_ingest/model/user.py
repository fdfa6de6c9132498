"""The rules of a user, to whom metrics belong."""

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid5

from pydantic import AfterValidator, Field, StringConstraints
from pydantic.networks import import_email_validator, validate_email
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model.metric import NIL
from metrics_ingest.model.validation import MAX_LISTED, STRICT, ObjectReader, parse_json
from metrics_ingest.steps import Steps

# Namespace of the user ids that are derived from an Idempotency-Key, so that a retry registers the same user.
USER_ID_NAMESPACE = UUID("a7c1b8b4-0c55-5f0e-8a51-2f6f0f4d9b27")
USERS_PER_STEP = 50  # an e-mail address takes up to 60 µs
# Without control characters (PostgreSQL's text cannot hold NUL), and not only spaces.
NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"


# Names for local and special use (RFC 6761, RFC 6762), which email_validator refuses in an address. "example" it takes.
SPECIAL_USE = re.compile(r"@(localhost|.+\.(invalid|local|localhost|test))$", re.IGNORECASE)

import_email_validator()  # now, not when the first user is registered


def _email(text: str) -> str:
    """Validate an e-mail address and return it normalized. Raise pydantic's errors.

    Domains for local and special use are valid, because development and tests need addresses that reach nobody.
    """
    text = text.strip()
    suffix = ".example" if SPECIAL_USE.search(text) else ""
    return validate_email(text + suffix)[1].removesuffix(suffix)


class User(TypedDict):
    """A person whose sessions are measured."""

    __pydantic_config__ = STRICT  # type: ignore[misc]  # pydantic's way for a TypedDict

    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NAME)]
    email: NotRequired[
        Annotated[
            Annotated[str, Field(max_length=320, json_schema_extra={"format": "email"}), AfterValidator(_email)] | None,
            Field(description="default: none, or the one stored already; null removes it"),
        ]
    ]
    user_id: NotRequired[Annotated[UUID | None, Field(description="default: a new one")]]


READER = ObjectReader(User)


@dataclass(slots=True)
class Users:
    """The users of one request, each as `parse` returns it, and the faults of the others, by position.

    The faults of MAX_LISTED users are described; the lists of others are empty, and `unlisted` counts their faults.
    """

    received: int
    valid: dict[int, dict[str, Any]]
    faults: dict[int, list[Fault]]
    unlisted: int = 0


def parse(body: bytes, key: str | None) -> dict[str, Any]:
    """Read one user as {"user_id", "name"}, and "email" if it was sent. Raise RequestRefused with all faults.

    `key` is the Idempotency-Key, from which a new user_id is derived.
    """
    return complete(READER.read(body), key)


def parse_many_steps(body: bytes, key: str | None, max_users: int) -> Steps[Users]:
    """Read a JSON array of users, in steps. Raise RequestRefused if it is none, or has none or too many of them."""
    items = parse_json(body)
    if not isinstance(items, list):
        raise RequestRefused(Fault("invalid_field", "send one user, or an array of users"))
    if not items:
        raise RequestRefused(Fault("empty_batch", "the array has no users"))
    if len(items) > max_users:
        raise RequestRefused(Fault("too_many_metrics", f"a request may have at most {max_users} users"))
    users = Users(len(items), {}, {})
    for position, item in enumerate(items):
        if position % USERS_PER_STEP == 0:
            yield
        try:
            if len(users.faults) >= MAX_LISTED and isinstance(count := READER.count_item(item), int):
                users.faults[position] = []
                users.unlisted += count
            else:
                users.valid[position] = complete(READER.read_item(item), key and f"{key}\n{position}")
        except RequestRefused as refused:
            users.faults[position] = list(refused.faults)
    return users


def complete(user: User, key: str | None) -> dict[str, Any]:
    """Return the user with a user_id: its own, one derived from `key`, or a new one. Raise RequestRefused."""
    if user.get("user_id") == NIL:
        raise RequestRefused(Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id"))
    new_id = uuid5(USER_ID_NAMESPACE, key) if key else UUID(bytes=os.urandom(16), version=4)
    return {**user, "user_id": user.get("user_id") or new_id}
