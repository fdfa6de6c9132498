"""`metrics-ingest type`: the registry of what can be measured. Running functions look at it with every batch."""

import math
from typing import Any

import click

from metrics_ingest.admin.console import JSON_OPTION, Refused, Row, connected, query, show
from metrics_ingest.storage.driver import sqlstate

# What a kind of metric is aggregated by, the usual first, and the range that it has by nature.
AGGREGATIONS = {
    "duration": ("sum", "mean", "min", "max", "last"),
    "counter": ("sum", "mean", "min", "max", "last"),
    "gauge": ("mean", "min", "max", "last"),  # a level now and a level then do not add up
    "score": ("mean", "min", "max", "last"),
    "flag": ("any",),
}
RANGES: dict[str, tuple[float | None, float | None]] = {"duration": (0, None), "counter": (0, None), "flag": (0, 1)}
ANY_AGGREGATION = sorted({name for names in AGGREGATIONS.values() for name in names})

LIST = """
    SELECT metric_type, kind, unit, min_value, max_value, aggregation, description, created_at, retired_at
    FROM metric_types
"""
USAGE = """
    SELECT COALESCE(sum(metric_count), 0)::bigint AS summarised_metrics, min(first_at) AS first_metric_at,
           max(last_at) AS last_metric_at
    FROM type_hour_rollup WHERE metric_type = :name
"""
ADD = """
    INSERT INTO metric_types (metric_type, kind, unit, min_value, max_value, aggregation, description)
    VALUES (:name, :kind, :unit, CAST(:least AS float8), CAST(:most AS float8), :aggregation, :description)
"""
SET = """
    UPDATE metric_types
    SET unit = :unit, min_value = CAST(:min_value AS float8), max_value = CAST(:max_value AS float8),
        aggregation = :aggregation, description = :description
    WHERE metric_type = :metric_type
"""
RETIRE = "UPDATE metric_types SET retired_at = COALESCE(retired_at, now()) WHERE metric_type = :name"
RESTORE = "UPDATE metric_types SET retired_at = NULL WHERE metric_type = :name"
REFUSALS = {
    "metric_types_pkey": "{} exists already; `type set` changes it",
    "metric_types_name_format": "{!r} is no name: a small letter, then small letters, digits and _, 64 at most",
    "metric_types_range_not_empty": "the range of {} is empty: --min is above --max",
}


@click.group()
def command() -> None:
    """Add, list, show, change and retire metric types.

    A new type is accepted by running functions at once: it is one row, no deployment. A retired one is refused from
    then on, and its data stays.
    """


@command.command()
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(list(AGGREGATIONS)), help="What sort of number it is.")
@click.option("--unit", default="", help="Such as s, ms, count, percent.")
@click.option(
    "--min", "least", type=float, help="The least value taken. [default: 0 for durations, counters and flags]"
)
@click.option("--max", "most", type=float, help="The greatest value taken. [default: 1 for flags]")
@click.option(
    "--aggregation", type=click.Choice(ANY_AGGREGATION), help="How summaries combine values. [default: by kind]"
)
@click.option("--description", default="", help="One sentence for people.")
@JSON_OPTION
def add(
    name: str, kind: str, unit: str, least: float | None, most: float | None, aggregation: str | None,
    description: str, as_json: bool,
) -> None:  # fmt: skip
    """Register a metric type: from now on it is accepted."""
    natural_least, natural_most = RANGES.get(kind, (None, None))
    least, most = natural_least if least is None else least, natural_most if most is None else most
    _check(kind, aggregation := aggregation or AGGREGATIONS[kind][0], least, most)
    with connected() as connection:
        values = {"least": least, "most": most, "aggregation": aggregation, "description": description}
        _run(connection, ADD, name, name=name, kind=kind, unit=unit, **values)
        show(_type(connection, name), as_json=as_json, title=name)


@command.command("list")
@click.option("--all", "with_retired", is_flag=True, help="Retired ones too.")
@JSON_OPTION
def list_types(with_retired: bool, as_json: bool) -> None:
    """List the metric types that are accepted."""
    with connected() as connection:
        where = "" if with_retired else "WHERE retired_at IS NULL"
        show(query(connection, f"{LIST} {where} ORDER BY metric_type"), as_json=as_json, title="metric types")


@command.command("show")
@click.argument("name")
@JSON_OPTION
def show_type(name: str, as_json: bool) -> None:
    """Show one metric type, and how much of it the summaries have."""
    with connected() as connection:
        show(_type(connection, name) | query(connection, USAGE, name=name)[0], as_json=as_json, title=name)


@command.command("set")
@click.argument("name")
@click.option("--unit")
@click.option("--min", "least", help="The least value taken, or `none`.")
@click.option("--max", "most", help="The greatest value taken, or `none`.")
@click.option("--aggregation", type=click.Choice(ANY_AGGREGATION))
@click.option("--description")
@JSON_OPTION
def set_type(
    name: str, unit: str | None, least: str | None, most: str | None, aggregation: str | None, description: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Change a metric type. Its kind stays: another kind is another metric.

    What is stored is not checked against a new range; summaries follow a new aggregation at once.
    """
    with connected() as connection:
        now = _type(connection, name)
        changes = {"unit": unit, "aggregation": aggregation, "description": description}
        now |= {key: value for key, value in changes.items() if value is not None}
        now |= {key: _bound(text) for key, text in (("min_value", least), ("max_value", most)) if text is not None}
        _check(now["kind"], now["aggregation"], now["min_value"], now["max_value"])
        _run(connection, SET, name, **{key: now[key] for key in
             ("metric_type", "unit", "min_value", "max_value", "aggregation", "description")})  # fmt: skip
        show(_type(connection, name), as_json=as_json, title=name)


@command.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Accept it again.")
@JSON_OPTION
def retire(name: str, undo: bool, as_json: bool) -> None:
    """Refuse a metric type from now on; what is stored stays, and doing it again changes nothing."""
    with connected() as connection:
        _run(connection, RESTORE if undo else RETIRE, name, name=name)
        show(_type(connection, name), as_json=as_json, title=name)


def _type(connection: Any, name: str) -> Row:
    found = query(connection, f"{LIST} WHERE metric_type = :name", name=name)
    if not found:
        raise Refused(f"there is no metric type {name!r}; `metrics-ingest type list --all` has those that there are")
    return found[0]


def _run(connection: Any, sql: str, metric_type: str, /, **values: Any) -> None:
    import pg8000.native

    try:
        connection.run(sql, **values)
    except pg8000.native.DatabaseError as error:
        fields: Any = error.args[0]
        if fields.get("n") in REFUSALS:
            raise Refused(REFUSALS[fields["n"]].format(metric_type)) from error
        if sqlstate(error) == "22001":  # string data, right truncation
            raise Refused("a name has 64 characters at most, a unit 32") from error
        raise


def _bound(text: str) -> float | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number, nor `none`") from None


def _check(kind: str, aggregation: str, least: float | None, most: float | None) -> None:
    if aggregation not in AGGREGATIONS[kind]:
        raise click.BadParameter(f"a {kind} is aggregated by {' or '.join(AGGREGATIONS[kind])}, not {aggregation}")
    if kind == "flag" and (least, most) != (0, 1):
        raise click.BadParameter("a flag is 0 or 1; it has no other range")
    if any(bound is not None and not math.isfinite(bound) for bound in (least, most)):
        raise click.BadParameter("a bound is a finite number")
