"""`metrics-ingest type`: the registry of metric types, which running functions read with every batch."""

import math
from difflib import get_close_matches
from typing import Any

import click
from pg8000.native import DatabaseError

from metrics_ingest.admin.console import JSON_OPTION, Record, print_record, print_rows
from metrics_ingest.admin.database import open_connection, query
from metrics_ingest.storage.driver import sqlstate, violated_constraint

# The aggregations that each kind allows, its default first, and the default range of its values.
AGGREGATIONS = {
    "duration": ("sum", "mean", "min", "max", "last"),
    "counter": ("sum", "mean", "min", "max", "last"),
    "gauge": ("mean", "min", "max", "last"),  # no sum: a sum of levels at different times has no meaning
    "score": ("mean", "min", "max", "last"),
    "flag": ("any",),
}
RANGES: dict[str, tuple[float | None, float | None]] = {"duration": (0, None), "counter": (0, None), "flag": (0, 1)}
ANY_AGGREGATION = click.Choice(sorted({name for names in AGGREGATIONS.values() for name in names}))
AGGREGATION_HELP = "How summaries combine values. [default: sum for duration and counter, any for flag, else mean]"
KIND_HELP = "duration: a time. counter: a count of events. gauge: a level. score: a rating. flag: yes (1) or no (0)."

LIST = """
    SELECT metric_type, kind, unit, min_value, max_value, aggregation, description, created_at, retired_at
    FROM metric_types
"""
LIST_COLUMNS = ("metric_type", "kind", "unit", "min_value", "max_value", "aggregation")  # what fits 80 characters
USAGE = """
    SELECT COALESCE(sum(metric_count), 0)::bigint AS summarised_metrics, min(first_at) AS first_metric_at,
           max(last_at) AS last_metric_at
    FROM type_hour_rollup WHERE metric_type = :name
"""
ADD = """
    INSERT INTO metric_types (metric_type, kind, unit, min_value, max_value, aggregation, description) VALUES
    (:metric_type, :kind, :unit, CAST(:min_value AS float8), CAST(:max_value AS float8), :aggregation, :description)
"""
SET = """
    UPDATE metric_types
    SET (unit, min_value, max_value, aggregation, description) =
        (:unit, CAST(:min_value AS float8), CAST(:max_value AS float8), :aggregation, :description)
    WHERE metric_type = :metric_type
"""
RETIRE = "UPDATE metric_types SET retired_at = now() WHERE metric_type = :metric_type AND retired_at IS NULL"
RESTORE = "UPDATE metric_types SET retired_at = NULL WHERE metric_type = :metric_type"
# Messages by the name of the constraint that a statement violates.
VIOLATIONS = {
    "metric_types_pkey": "{} exists already; `type set` changes it",
    "metric_types_name_format": "{!r} is no valid name: use a small letter, then up to 63 small letters, digits and _",
    "metric_types_range_not_empty": "the range of {} is empty: --min is above --max",
}


@click.group()
def command() -> None:
    """Add, list, show, change and retire metric types.

    Running functions accept a new type, and refuse a retired one, at once. What is stored of a retired type stays.
    """


@command.command(short_help="Register a metric type.")
@click.argument("metric_type", metavar="NAME")
@click.option("--kind", required=True, type=click.Choice(list(AGGREGATIONS)), help=KIND_HELP)
@click.option("--unit", default="", help="Such as s, ms, count or percent.")
@click.option("--min", "min_value", type=float, help="The smallest value. [default: 0 for duration, counter and flag]")
@click.option("--max", "max_value", type=float, help="The largest value. [default: 1 for flag]")
@click.option("--aggregation", type=ANY_AGGREGATION, help=AGGREGATION_HELP)
@click.option("--description", default="", help="One sentence for people.")
@JSON_OPTION
def add(min_value: float | None, max_value: float | None, as_json: bool, **values: Any) -> None:
    """Register a metric type. Running functions accept it from now on."""
    default_min, default_max = RANGES.get(values["kind"], (None, None))
    values["min_value"] = default_min if min_value is None else min_value
    values["max_value"] = default_max if max_value is None else max_value
    values["aggregation"] = values["aggregation"] or AGGREGATIONS[values["kind"]][0]
    _check(values)
    with open_connection() as connection:
        _change(connection, ADD, values, as_json)


@command.command("list", short_help="List the metric types.")
@click.option("--all", "with_retired", is_flag=True, help="List retired types, too.")
@JSON_OPTION
def list_types(with_retired: bool, as_json: bool) -> None:
    """List the metric types that are accepted."""
    with open_connection() as connection:
        condition = "" if with_retired else "WHERE retired_at IS NULL"
        rows = query(connection, f"{LIST} {condition} ORDER BY metric_type")
    columns = (*LIST_COLUMNS, "retired_at") if with_retired else LIST_COLUMNS
    print_rows(rows, as_json=as_json, title="metric types", columns=columns)


@command.command("show", short_help="Show one metric type and how many metrics it has.")
@click.argument("name")
@JSON_OPTION
def show_type(name: str, as_json: bool) -> None:
    """Show one metric type, and how many metrics of it the summaries contain."""
    with open_connection() as connection:
        record = _find(connection, name) | query(connection, USAGE, name=name)[0]
    print_record(record, as_json=as_json, title=name)


@command.command("set", short_help="Change a metric type.")
@click.argument("name")
@click.option("--unit", help="The new unit.")
@click.option("--min", "min_value", help="The smallest value, or `none` for no limit.")
@click.option("--max", "max_value", help="The largest value, or `none` for no limit.")
@click.option("--aggregation", type=ANY_AGGREGATION, help="How summaries combine values.")
@click.option("--description", help="The new description.")
@JSON_OPTION
def set_type(name: str, as_json: bool, **options: str | None) -> None:
    """Change a metric type. Its kind cannot change: add another type instead.

    A new range applies to metrics that arrive from now on. A new aggregation applies to all summaries at once.
    """
    changes = {field: value for field, value in options.items() if value is not None}
    if not changes:
        raise click.UsageError("name what to change: --unit, --min, --max, --aggregation or --description")
    limits = {field: _limit(changes[field]) for field in ("min_value", "max_value") if field in changes}
    with open_connection() as connection:
        values = _find(connection, name) | changes | limits
        _check(values)
        _change(connection, SET, values, as_json)


@command.command(short_help="Refuse a metric type from now on.")
@click.argument("name")
@click.option("--undo", is_flag=True, help="Accept it again.")
@JSON_OPTION
def retire(name: str, undo: bool, as_json: bool) -> None:
    """Refuse a metric type from now on. What is stored of it stays."""
    with open_connection() as connection:
        _change(connection, RESTORE if undo else RETIRE, {"metric_type": name}, as_json)


def _find(connection: Any, name: str) -> Record:
    require_type(connection, name)
    return query(connection, f"{LIST} WHERE metric_type = :name", name=name)[0]


def require_type(connection: Any, name: str) -> None:
    """Raise ClickException, with names that are alike, if there is no metric type of that name."""
    names = [row["metric_type"] for row in query(connection, LIST)]
    if name not in names:
        alike = get_close_matches(name, names)
        advice = f"is it {' or '.join(alike)}?" if alike else "`metrics-ingest type list --all` lists all"
        raise click.ClickException(f"there is no metric type {name!r}; {advice}")


def _change(connection: Any, sql: str, values: Record, as_json: bool) -> None:
    """Run the statement and print the type. Raise ClickException when a value violates a constraint."""
    try:
        connection.run(sql, **values)
    except DatabaseError as error:
        constraint = violated_constraint(error)
        if constraint in VIOLATIONS:
            raise click.ClickException(VIOLATIONS[constraint].format(values["metric_type"])) from error
        if sqlstate(error) == "22001":  # string too long
            raise click.ClickException("a name has 64 characters at most, a unit 32") from error
        raise
    print_record(_find(connection, values["metric_type"]), as_json=as_json, title=values["metric_type"])


def _limit(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number, nor `none`") from None


def _check(values: Record) -> None:
    """Raise click.BadParameter for an aggregation or a range that the kind does not allow."""
    kind, limits = values["kind"], (values["min_value"], values["max_value"])
    if values["aggregation"] not in AGGREGATIONS[kind]:
        allowed = " or ".join(AGGREGATIONS[kind])
        raise click.BadParameter(f"a {kind} is aggregated by {allowed}, not {values['aggregation']}")
    if kind == "flag" and limits != (0, 1):
        raise click.BadParameter("a flag is 0 or 1; it has no other range")
    if any(limit is not None and not math.isfinite(limit) for limit in limits):
        raise click.BadParameter("--min and --max must be finite numbers")
