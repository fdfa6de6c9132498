"""`metrics-ingest user add|list|load|export`: many users at once."""

import json
import sys
from collections import Counter
from typing import IO, Any, NotRequired
from uuid import UUID

import click

from metrics_ingest.admin.console import JSON_OPTION, Record, print_record, print_rows, printable
from metrics_ingest.admin.database import open_connection, query, transaction
from metrics_ingest.admin.export import copy_out
from metrics_ingest.admin.files import Chunk, read_chunks
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model import user
from metrics_ingest.model.metric import Timestamp
from metrics_ingest.model.validation import ObjectReader
from metrics_ingest.storage.operations import Operation, execute_blocking

COLUMNS = ("user_id", "name", "email", "created_at")
COUNTS = ("received", "created", "changed", "unchanged", "rejected")  # received is the sum of the others
LIST = """
    SELECT user_id, name, email, created_at FROM users
    WHERE :search = '' OR user_id::text = lower(:search)
       OR strpos(lower(name), lower(:search)) > 0 OR strpos(lower(coalesce(email, '')), lower(:search)) > 0
    ORDER BY created_at DESC, user_id LIMIT :most
"""
FIND = "SELECT user_id, name, email, created_at FROM users WHERE user_id = :user_id"
CREATED_AT = """to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at"""  # the connection is in UTC
EXPORT = {
    "ndjson": """SELECT format('{"user_id":"%s","name":%s,"email":%s,"created_at":%s}', user_id, to_json(name),
                               coalesce(to_json(email)::text, 'null'), to_json(created_at)) FROM users""",
    "csv": "SELECT user_id, name, email, " + CREATED_AT + " FROM users",  # noqa: S608  # constants of this module only
}


class UserOfFile(user.User):
    """A user as `export` writes it, with the time of its first registration."""

    created_at: NotRequired[Timestamp | None]


READER = ObjectReader(UserOfFile)


@click.command("list", short_help="List users.")
@click.option("--search", default="", help="Part of a name or e-mail address, or an id. [default: all]")
@click.option("--limit", "most", default=100, show_default=True, type=click.IntRange(1), help="How many at most.")
@JSON_OPTION
def list_users(search: str, most: int, as_json: bool) -> None:
    """List users, those who were registered last first."""
    with open_connection() as connection:
        rows = query(connection, LIST, search=search, most=most)
    print_rows(rows, as_json=as_json, title="users")
    if len(rows) == most:
        click.echo(f"the first {most:,}; --limit shows more, `user export` writes all", err=True)


@click.command(short_help="Register a user, or change its name or e-mail address.")
@click.argument("name")
@click.option("--email", help="The e-mail address. [default: none, or the one that is stored]")
@click.option("--id", "user_id", type=click.UUID, help="The user_id. [default: a new one]")
@JSON_OPTION
def add(name: str, email: str | None, user_id: UUID | None, as_json: bool) -> None:
    """Register a user, or change the name or e-mail address of the user with --id."""
    sent = {"name": name, "email": email, "user_id": str(user_id) if user_id else None}
    body = json.dumps({field: value for field, value in sent.items() if value is not None})
    try:
        one = user.parse(body.encode(), None)
    except RequestRefused as refused:
        raise click.UsageError("; ".join(fault.detail for fault in refused.faults)) from refused
    with open_connection() as connection:
        (outcome,) = execute_blocking(connection, Operation.REGISTER_USERS, [one])
        if outcome.kind == "being_erased":
            raise click.ClickException(f"the erasure of {one['user_id']} is under way; register it again after that")
        (record,) = query(connection, FIND, user_id=one["user_id"])
    print_record(record, as_json=as_json, title="registered" if outcome.facts["created"] else "changed")


@click.command(short_help="Register the users of files.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--csv", "as_csv", is_flag=True, help="Read all files as CSV. [default: those named .csv or .csv.gz]")
@JSON_OPTION
def load(files: tuple[str, ...], as_csv: bool, as_json: bool) -> None:
    """Register the users of FILES, or change those that are known.

    They are NDJSON, CSV with a header, or a JSON array, also compressed with gzip; `-` is standard input. The fields
    are user_id, name, email and created_at. A user without user_id gets one, the same when the file is loaded again.

    Exit code 1 means that some users were rejected; the others are registered.
    """
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    with open_connection() as connection:
        for file in files:
            for chunk in read_chunks(file, as_csv, COLUMNS):
                for number, fault in _register(connection, chunk, counts):
                    click.echo(f"{file}, line {number}: {fault.code}: {printable(fault.detail)}", err=True)
    print_record(dict(counts), as_json=as_json, title="users")
    if counts["rejected"]:
        sys.exit(1)


@click.command(short_help="Write all users to a file.")
@click.option("--format", "form", default="ndjson", show_default=True, type=click.Choice(list(EXPORT)))
@click.option("-o", "--output", type=click.File("wb"), default="-", help="[default: standard output]")
def export(form: str, output: IO[bytes]) -> None:
    """Write all users as NDJSON or CSV, which `user load` reads. `metrics-ingest export` writes their metrics."""
    count = copy_out(EXPORT[form], form, output)
    click.echo(f"{count:,} users", err=True)


def _register(connection: Any, chunk: Chunk, counts: Counter[str]) -> list[tuple[int, Fault]]:
    """Register the users of a chunk in one transaction; return the faults by line."""
    users: list[Record] = []
    lines: list[int] = []
    faults: list[tuple[int, Fault]] = []
    for position, line in enumerate(chunk.lines):
        try:
            if line.fault:
                raise RequestRefused(line.fault)
            users.append(user.complete(READER.read(line.metric), f"{chunk.idempotency_key}\n{position}"))
            lines.append(line.number)
        except RequestRefused as refused:
            faults.append((line.number, refused.faults[0]))
    outcomes = []
    if users:
        with transaction(connection):
            outcomes = execute_blocking(connection, Operation.REGISTER_USERS, users)
    for number, outcome in zip(lines, outcomes, strict=True):
        if outcome.kind == "being_erased":
            faults.append((number, Fault("store_unavailable", "the erasure of this user is under way", "user_id")))
        else:
            facts = outcome.facts
            counts["created" if facts["created"] else "changed" if facts["changed"] else "unchanged"] += 1
    counts.update(received=len(chunk.lines), rejected=len(faults))
    return sorted(faults, key=lambda fault: fault[0])
