"""The rules of a user, to whom metrics belong."""

import os
import re
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid5

from pydantic import AfterValidator, Field, StringConstraints
from pydantic.networks import import_email_validator, validate_email
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model.metric import NIL
from metrics_ingest.model.validation import STRICT, ObjectReader

# Namespace of the user ids that are derived from an Idempotency-Key, so that a retry registers the same user.
USER_ID_NAMESPACE = UUID("a7c1b8b4-0c55-5f0e-8a51-2f6f0f4d9b27")
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


def parse(body: bytes, key: str | None) -> dict[str, Any]:
    """Read one user as {"user_id", "name"}, and "email" if it was sent. Raise RequestRefused with all faults.

    `key` is the Idempotency-Key, from which a new user_id is derived.
    """
    user = READER.read(body)
    if user.get("user_id") == NIL:
        raise RequestRefused(Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id"))
    new_id = uuid5(USER_ID_NAMESPACE, key) if key else UUID(bytes=os.urandom(16), version=4)
    return {**user, "user_id": user.get("user_id") or new_id}
