"""Registers the users to whom metrics belong."""

from typing import Any

from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.writer import writer


async def register(user: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Store a user of model.user.parse; return it with its created_at, and whether it is new.

    Raise what Writer.write raises.
    """
    (outcome,) = await writer().write(Operation.REGISTER_USERS, [user])
    return {**user, "created_at": outcome.facts["created_at"]}, outcome.facts["created"]
