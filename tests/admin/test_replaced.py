"""A large default partition is replaced by a new one."""

from collections.abc import Callable
from typing import Any

import click
import pytest

from metrics_ingest.admin import database, replaced
from metrics_ingest.admin import drain as draining
from support.console import Console

Fill = Callable[[str, int], str]
MAINTAIN = ("partitions", "maintain", "--yes")
SHAPE = """
    SELECT ARRAY(SELECT regexp_replace(pg_get_indexdef(indexrelid), 'INDEX \\S+ ', '')
                 FROM pg_index WHERE indrelid = 'metrics_default'::regclass ORDER BY 1),
           ARRAY(SELECT pg_get_constraintdef(oid)
                 FROM pg_constraint WHERE conrelid = 'metrics_default'::regclass ORDER BY 1),
           (SELECT array_agg((attname, atttypid, attnotnull)::text ORDER BY attnum)
            FROM pg_attribute WHERE attrelid = 'metrics_default'::regclass AND attnum > 0),
           obj_description('metrics_default'::regclass)
"""


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a default of any size."""
    monkeypatch.setattr(draining, "REPLACE_ABOVE", 0)


def counts(console: Console) -> Any:
    """How many metrics there are, and how many of them in the default."""
    return console.sql("SELECT count(*), (SELECT count(*) FROM metrics_default) FROM metrics")[0]


def defaults(console: Console) -> list[str]:
    """The names of all tables that are, were or are to be the default of metrics."""
    return [name for (name,) in console.sql("SELECT relname FROM pg_class WHERE relname ~ '^metrics_default(_[a-z]+)?$'"
                                            " AND relkind = 'r' ORDER BY 1")]  # fmt: skip


def test_new_default_is_like_the_old_one(console: Console, filled: Fill) -> None:
    filled("2019-12-01", 100)
    before, number = console.sql(SHAPE), console.sql("SELECT 'metrics_default'::regclass::oid")
    assert console.json(*MAINTAIN)[0]["drained"] == 100
    assert console.sql("SELECT 'metrics_default'::regclass::oid") != number
    assert console.sql(SHAPE) == before
    assert defaults(console) == ["metrics_default"]


def test_rows_of_a_month_that_cannot_be_made_stay(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new default that a killed run has prepared, when that month was to be made."""
    filled("2019-11-01", 20)
    filled("2019-12-01", 30)

    def killed(*_arguments: Any, **_options: Any) -> Any:
        raise click.Abort

    with monkeypatch.context() as patch:
        patch.setattr(draining, "_attach", killed)
        console.run(*MAINTAIN, exit_code=1)
    assert defaults(console) == ["metrics_default", "metrics_default_next"]
    console.sql("DROP TABLE metrics_p2019_11")
    console.sql("CREATE TABLE metrics_p2019_11 (of_somebody_else int)")
    assert console.json(*MAINTAIN)[0]["drained"] == 30
    assert counts(console) == [50, 20]
    assert defaults(console) == ["metrics_default"]


def test_default_is_replaced_only_by_a_role_that_sees_all_snapshots(console: Console) -> None:
    connection = console.connect()
    assert replaced.is_possible(connection, "metrics")
    connection.run("SET ROLE metrics_reader")
    assert not replaced.is_possible(connection, "metrics")
    connection.run("RESET ROLE; GRANT pg_read_all_stats TO metrics_reader; SET ROLE metrics_reader")
    try:
        assert replaced.is_possible(connection, "metrics")
    finally:
        connection.run("RESET ROLE; REVOKE pg_read_all_stats FROM metrics_reader")
        connection.close()


def test_kill_before_the_old_default_is_dropped_is_mended_by_the_next_run(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a row that nobody looked for, because it says that it was received long before it was inserted."""
    user = filled("2019-12-01", 50)

    def detach(connection: Any, parent: str) -> None:
        connection.run(
            "INSERT INTO metrics VALUES (:u, '2019-12-20Z', gen_random_uuid(), :u, 'talked_time', 1, '2019-12-20Z')",
            u=user,
        )
        original(connection, parent)

    original = replaced.detach
    monkeypatch.setattr(replaced, "detach", detach)
    drop = replaced.drop
    monkeypatch.setattr(replaced, "drop", lambda *_arguments: 0)
    console.json(*MAINTAIN)
    assert defaults(console) == ["metrics_default", "metrics_default_old"]
    assert counts(console) == [50, 0]
    console.run("summaries", "refresh")
    monkeypatch.setattr(replaced, "drop", drop)
    console.json(*MAINTAIN)
    assert defaults(console) == ["metrics_default"]
    assert counts(console) == [51, 0]
    console.run("summaries", "refresh")
    assert console.sql("SELECT sum(metric_count) FROM type_hour_summary") == [[51]]


def test_table_of_an_operator_is_not_dropped(console: Console, filled: Fill) -> None:
    """Without our record it is not ours, and the default is emptied month by month."""
    filled("2019-12-01", 50)
    console.sql("CREATE TABLE metrics_default_old AS SELECT 1 AS one")
    assert console.json(*MAINTAIN)[0]["drained"] == 50
    assert console.sql("SELECT one FROM metrics_default_old") == [[1]]


def test_it_goes_on_month_by_month_when_the_locks_cannot_be_had(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled("2019-11-01", 20)
    filled("2019-12-01", 30)
    original = database.with_table_locks

    def refused(connection: Any, attempt: Callable[[int], Any], *tables: str, **options: Any) -> Any:
        if "metrics_default_next" in tables:
            raise click.ClickException("a long transaction locks the tables")
        return original(connection, attempt, *tables, **options)

    monkeypatch.setattr(draining, "with_table_locks", refused)
    assert console.json(*MAINTAIN)[0]["drained"] == 50
    assert counts(console) == [50, 0]


@pytest.mark.parametrize("limit", [0, 1000], ids=["replaced", "by-month"])
def test_rows_stored_while_it_copies_do_not_look_like_deleted_ones(
    console: Console, filled: Fill, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Else all rows are moved while writers wait."""
    monkeypatch.setattr(draining, "REPLACE_ABOVE", limit)
    user = filled("2019-12-01", 50)
    original, once = draining._copy_once, draining._move_once
    tries: list[bool] = []

    def copy(*arguments: Any) -> Any:
        copied = original(*arguments)
        console.ingest({"user_id": user, "timestamp": "2019-12-15T00:00:00Z"})
        return copied

    def move(*arguments: Any, copy_first: bool) -> Any:
        tries.append(copy_first)
        return once(*arguments, copy_first=copy_first)

    monkeypatch.setattr(draining, "_copy_once", copy)
    monkeypatch.setattr(draining, "_move_once", move)
    console.run(*MAINTAIN)
    assert tries.count(False) == 0
    assert counts(console)[1] == 0
