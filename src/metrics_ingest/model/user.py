"""The rules of a user, to whom metrics belong."""

import os
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid5

from pydantic import EmailStr, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model.metric import NIL
from metrics_ingest.model.validation import STRICT, validate_json

# Namespace of the user ids that are derived from an Idempotency-Key, so that a retry registers the same user.
USER_ID_NAMESPACE = UUID("a7c1b8b4-0c55-5f0e-8a51-2f6f0f4d9b27")
# Without control characters (PostgreSQL's text cannot hold NUL), and not only spaces.
NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"


class User(TypedDict):
    """A person whose sessions are measured."""

    __pydantic_config__ = STRICT  # type: ignore[misc]  # pydantic's way for a TypedDict

    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NAME)]
    email: NotRequired[Annotated[EmailStr, Field(max_length=320)]]
    user_id: NotRequired[Annotated[UUID, Field(description="default: a new one")]]


USER = TypeAdapter(User)
FIELDS = User.__required_keys__ | User.__optional_keys__


def parse(body: bytes, key: str | None) -> dict[str, Any]:
    """Read one user as {"user_id", "name", "email"}. Raise RequestRefused with all faults.

    `key` is the Idempotency-Key, from which a new user_id is derived.
    """
    user = validate_json(USER, FIELDS, body)
    if user.get("user_id") == NIL:
        raise RequestRefused(Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id"))
    new_id = uuid5(USER_ID_NAMESPACE, key) if key else UUID(bytes=os.urandom(16), version=4)
    return {"user_id": user.get("user_id", new_id), "name": user["name"], "email": user.get("email")}
