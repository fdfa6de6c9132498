"""`metrics-ingest citus`: spread the tables over the nodes of a Citus cluster."""

from typing import Any

import click
from pg8000.native import literal

from metrics_ingest.admin.console import JSON_OPTION, Record, print_rows
from metrics_ingest.admin.database import open_connection, query
from metrics_ingest.storage import migrations

# On every node as a whole: small tables that every metric is compared with.
REFERENCE = ("metric_types", "user_erasures")
# Spread by user_id, those that others refer to first. Partitions are spread with their table.
DISTRIBUTED = ("users", "sessions", "metrics", "session_rollup", "user_day_rollup")
NEAR = "store_metrics_near(uuid, uuid[], timestamptz[], uuid[], uuid[], text[], float8[], boolean[])"

READY = """
    SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') AS has_extension,
           to_regclass('metrics') IS NOT NULL AS has_tables,
           to_regproc('store_metrics_near') IS NOT NULL AS has_functions
"""
NODES = """
    SELECT citus_is_coordinator() AS is_coordinator,
           (SELECT count(*) FROM pg_dist_node WHERE groupid = 0) AS coordinators,
           (SELECT count(*) FROM pg_dist_node WHERE shouldhaveshards AND isactive) AS workers
"""
DONE = "SELECT table_name::text AS table, shard_count FROM citus_tables WHERE citus_table_type <> 'local'"
# What was in the tables stays on the coordinator's disk, where nobody reads it.
LEFT_BEHIND = """
    SELECT bool_or(pg_relation_size(relid) > 0)
    FROM unnest(CAST(:tables AS text[])) AS name, pg_partition_tree(to_regclass(name))
"""
IS_NEAR = """
    SELECT FROM pg_catalog.pg_dist_object
    WHERE classid = 'pg_proc'::regclass AND objid = to_regproc('store_metrics_near')
      AND distribution_argument_index IS NOT NULL
"""


@click.group()
def command() -> None:
    """Spread the database over the nodes of a Citus cluster (docs/scaling.md)."""


@command.command(short_help="Distribute the tables by user.")
@click.option("--shards", default=32, show_default=True, type=click.IntRange(1, 64_000),
              help="Shards of each table: two to four times the largest number of workers foreseen.")  # fmt: skip
@JSON_OPTION
def distribute(shards: int, as_json: bool) -> None:
    """Distribute the tables by user, with what is in them, and let metrics be stored on the node of their user.

    The database needs the extension citus and its workers, and `metrics-ingest migrate` must have run. What is
    distributed already is left as it is, so the command can be run again. Writers wait while a table is distributed:
    do it before there is much data. Functions that run already notice it when they are started again.
    """
    with open_connection() as connection:
        _check(connection)
        done = {row["table"]: row["shard_count"] for row in query(connection, DONE)}
        steps = [_step(connection, table, done, shards) for table in (*REFERENCE, *DISTRIBUTED)]
        if connection.run(LEFT_BEHIND, tables=[*REFERENCE, *DISTRIBUTED])[0][0]:
            for table in (*REFERENCE, "users", "session_rollup", "user_day_rollup"):  # users with what refers to them
                connection.run(f"SELECT truncate_local_data_after_distributing_table('{table}')")
        if not query(connection, IS_NEAR):
            function = f"SELECT create_distributed_function('{NEAR}', 'anchor', colocate_with => 'users')"
            connection.run(function)
        connection.run(migrations.private_on_all_nodes())  # also on nodes that were added since
    print_rows(steps, as_json=as_json, title="tables")


def _check(connection: Any) -> None:
    """Raise ClickException if the database cannot be distributed yet."""
    (ready,) = query(connection, READY)
    if not ready["has_extension"]:
        raise click.ClickException(
            "the database has no extension citus: put citus into shared_preload_libraries of all nodes, run"
            " CREATE EXTENSION citus in the database of each, and add the nodes with citus_set_coordinator_host"
            " and citus_add_node"
        )
    if not (ready["has_tables"] and ready["has_functions"]):
        raise click.ClickException("run `metrics-ingest migrate` first: tables or functions for Citus are missing")
    (nodes,) = query(connection, NODES)
    if not nodes["is_coordinator"]:
        raise click.ClickException("this is a worker; DATABASE_URL must name the coordinator")
    if not nodes["coordinators"]:
        raise click.ClickException("run SELECT citus_set_coordinator_host('HOST', PORT) first, with the coordinator's")
    if not nodes["workers"]:
        raise click.ClickException("there is no worker; add some with SELECT citus_add_node('HOST', PORT)")


def _step(connection: Any, table: str, done: dict[str, int], shards: int) -> Record:
    """Distribute one table, unless that is done; return what it is now."""
    if table in done:
        return {"table": table, "shards": done[table], "done": "before"}
    if table in REFERENCE:
        connection.run(f"SELECT create_reference_table({literal(table)})")
    elif table == DISTRIBUTED[0]:
        connection.run(f"SELECT create_distributed_table('{table}', 'user_id', shard_count => {shards})")
    else:
        connection.run(f"SELECT create_distributed_table('{table}', 'user_id', colocate_with => '{DISTRIBUTED[0]}')")
    return {"table": table, "shards": 1 if table in REFERENCE else shards, "done": "now"}
