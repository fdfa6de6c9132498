"""POST /users/: register a user or many, or update their names and e-mail addresses."""

from metrics_ingest import server

server.install()  # before the other imports, which take 20 ms less with its gc threshold

from http import HTTPStatus

import functions_framework.aio
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.errors import Fault, StoreUnavailable
from metrics_ingest.http.headers import Headers, idempotency_key
from metrics_ingest.http.replies import Reply, accounts_reply
from metrics_ingest.http.service import Service
from metrics_ingest.model.user import parse, parse_many_steps
from metrics_ingest.settings import settings
from metrics_ingest.steps import in_turns
from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.writer import writer


@functions_framework.aio.http
async def users(request: Request) -> Response:
    return await service.respond(request)


async def store_users(body: bytes, headers: Headers) -> Reply:
    """Store one user, or an array of users."""
    is_array = body.lstrip(b" \t\r\n").startswith(b"[")
    return await (store_many(body, headers) if is_array else store_one(body, headers))


async def store_one(body: bytes, headers: Headers) -> Reply:
    """Reply 201 for a new user and 200 for a known one, with what is stored now."""
    user = parse(body, idempotency_key(headers))
    (outcome,) = await writer().write(Operation.REGISTER_USERS, [user])
    if outcome.kind == "being_erased":
        raise StoreUnavailable("the erasure of this user is under way")
    stored = {
        "user_id": user["user_id"],
        "name": user["name"],
        "email": outcome.facts["email"],
        "created_at": outcome.facts["created_at"],
    }
    return Reply(201 if outcome.facts["created"] else 200, to_json(stored))


async def store_many(body: bytes, headers: Headers) -> Reply:
    """Register all valid users, and account for each: received = stored + duplicates + rejected.

    Stored are new users, which `created` counts, and known ones that have changed; duplicates were known as they are.
    """
    users = await in_turns(parse_many_steps(body, idempotency_key(headers), settings().max_batch))
    positions, faults = list(users.valid), users.faults
    outcomes = await writer().write(Operation.REGISTER_USERS, list(users.valid.values())) if positions else []
    created = stored = 0
    for position, outcome in zip(positions, outcomes, strict=True):
        if outcome.kind == "being_erased":
            detail = "the erasure of this user is under way; send it again later"
            faults[position] = [Fault("store_unavailable", detail, "user_id")]
            continue
        created += outcome.facts["created"]
        stored += outcome.facts["changed"]
    rejected = len(faults)
    counts = {
        "message": f"{stored} of {users.received} users stored",
        "received": users.received,
        "stored": stored,
        "created": created,
        "duplicates": users.received - stored - rejected,
        "rejected": rejected,
    }
    accepted = users.received - rejected
    status = HTTPStatus.OK if not rejected else HTTPStatus.MULTI_STATUS if accepted else HTTPStatus.UNPROCESSABLE_ENTITY
    return accounts_reply(status, counts, faults, users.unlisted + sum(map(len, faults.values())))


service = Service("users", store_users, max_items=settings().max_batch, takes_one=True)
