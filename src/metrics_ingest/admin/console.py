"""What the operator's commands share: the database of the environment, and answers for eyes and for scripts.

Exit codes: 0 done, 1 not done for a reason that the message gives, 2 wrong usage, 3 the database (or the function)
cannot be reached, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import click

from metrics_ingest.settings import BadSetting, Database, read_database

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for scripts.")
Row = dict[str, Any]


class Refused(click.ClickException):
    """It cannot be done, for a reason that the message gives."""

    exit_code = 1


class Unreachable(click.ClickException):
    """The database or the function does not answer."""

    exit_code = 3


class Instant(click.ParamType[datetime]):
    """A date or a time with an offset (RFC 3339); what has no offset is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Raise click.BadParameter for what is no time."""
        try:
            instant = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date or time like 2024-08-01 or 2024-08-08T12:34:56Z", param, ctx)
        return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


INSTANT = Instant()


def database() -> Database:
    """The database that the environment names. Raise click.UsageError when it names none."""
    try:
        return read_database(os.environ)
    except BadSetting as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def connected() -> Iterator[Any]:
    """A pg8000 connection in UTC. What the database says no to becomes Refused, a lost connection Unreachable."""
    import pg8000.native

    from metrics_ingest.storage.driver import connect, reason_of

    try:
        connection = connect(database(), None)
    except (pg8000.native.DatabaseError, pg8000.native.InterfaceError, OSError) as error:
        raise Unreachable(f"cannot reach the database: {reason_of(error)}") from error
    try:
        connection.run("SET timezone = 'UTC'")
        yield connection
    except pg8000.native.DatabaseError as error:
        raise Refused(f"the database refused: {reason_of(error)}") from error
    except pg8000.native.InterfaceError as error:
        raise Unreachable(f"the connection to the database was lost: {reason_of(error)}") from error
    finally:
        with suppress(pg8000.native.InterfaceError, OSError):  # it may be broken already
            connection.close()


def query(connection: Any, sql: str, **parameters: Any) -> list[Row]:
    """The rows of a query, each by its columns' names."""
    values = connection.run(sql, **parameters)
    names = [column["name"] for column in connection.columns]
    return [dict(zip(names, row, strict=True)) for row in values]


def show(answer: Row | Iterable[Row], *, as_json: bool, title: str | None = None) -> None:
    """Print one object or a list of rows: JSON, or a table (drawn by rich, on a terminal that has it)."""
    if as_json:
        click.echo(json.dumps(answer if isinstance(answer, Mapping) else list(answer), default=_in_json))
        return
    if isinstance(answer, Mapping):
        rows = [{"": name.replace("_", " "), " ": value} for name, value in answer.items()]
    else:
        rows = list(answer)
    if not rows:
        click.echo(f"no {title or 'rows'}")
        return
    names = list(rows[0])
    cells = [[_shown(row[name]) for name in names] for row in rows]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    if sys.stdout.isatty() and _draw(title, names, cells, numeric):
        return
    widths = [max(len(line[column]) for line in [names, *cells]) for column in range(len(names))]
    for line in cells if isinstance(answer, Mapping) else [names, *cells]:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def _draw(title: str | None, names: list[str], cells: list[list[str]], numeric: list[bool]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(title=title, show_header=any(name.strip() for name in names))
    for name, right in zip(names, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in cells:
        table.add_row(*(text.replace("[", r"\[") for text in line))
    Console().print(table)
    return True


def _in_json(value: object) -> str:
    return _instant(value) if isinstance(value, datetime) else str(value)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, datetime):
        return _instant(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _instant(value: datetime) -> str:
    text = value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return text.removesuffix("T00:00:00Z")


def confirmed(question: str, *, yes: bool) -> None:
    """Go on only when the person says yes; abort (exit 1) otherwise."""
    if not yes:
        click.confirm(question, abort=True, err=True)
