"""Registering the users whom metrics belong to."""

import os
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid5

from pydantic import EmailStr, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model import metric

# Namespace of the user ids that are derived from an Idempotency-Key, so that a retry registers the same user.
KEYED_IDS = UUID("a7c1b8b4-0c55-5f0e-8a51-2f6f0f4d9b27")
# PostgreSQL's text has no NUL; the other control characters have no place in a name.
NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"


class User(TypedDict):
    """A person whose sessions are measured."""

    __pydantic_config__ = metric.CLOSED  # type: ignore[misc]  # pydantic's way for a TypedDict

    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NAME)]
    email: NotRequired[Annotated[EmailStr, Field(max_length=320)]]
    user_id: NotRequired[Annotated[UUID, Field(description="default: a new one")]]


USER = TypeAdapter(User)
FIELDS = User.__required_keys__ | User.__optional_keys__


def parse(body: bytes, key: str | None) -> dict[str, Any]:
    """Read one user. Raise RequestRefused with all its faults."""
    try:
        user = USER.validate_json(body)
    except ValidationError as error:
        raise RequestRefused(*metric.faults(error, body, FIELDS)) from error
    if unknown := metric.unknown_fields(from_json(body), FIELDS):
        raise RequestRefused(*unknown)
    if user.get("user_id") == metric.NIL:
        raise RequestRefused(Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id"))
    new_id = uuid5(KEYED_IDS, key) if key else UUID(bytes=os.urandom(16), version=4)
    return {"user_id": user.get("user_id", new_id), "name": user["name"], "email": user.get("email")}
