"""What maintenance does otherwise for a table that Citus distributes.

There are no snapshots of all nodes, and no transaction ids to tell which rows are new. So writers are blocked while a
month's rows are moved out of the default, for as long as it takes: run maintenance daily.
"""

import time
from typing import Any

from metrics_ingest.admin import database
from metrics_ingest.admin.catalog import EMPTY_OF_OURS
from metrics_ingest.admin.database import query, transaction, with_table_locks
from metrics_ingest.admin.months import HAS_CITUS, IS_DISTRIBUTED, Partition

IN_ORDER = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"  # else DDL in a transaction may block itself
SIZES = "SELECT CAST(citus_total_relation_size(to_regclass(:name), false) AS bigint) AS bytes"
ROWS = """
    SELECT sum(CAST(nullif(result, '') AS bigint))
    FROM run_command_on_shards(to_regclass(:name), $$SELECT pg_stat_get_live_tuples('%s'::regclass)$$)
"""


def is_distributed(connection: Any, table: str) -> bool:
    """Whether Citus distributes the table."""
    return bool(connection.run(HAS_CITUS) and connection.run(IS_DISTRIBUTED, parent=table))


def measure(connection: Any, partition: str) -> dict[str, int]:
    """The `rows` (estimated) and `bytes` of a partition on all nodes."""
    ((rows,),) = connection.run(ROWS, name=partition)
    return {"rows": int(rows or 0), **query(connection, SIZES, name=partition)[0]}


def move(connection: Any, month: Partition) -> tuple[int, float] | None:
    """Move the month's rows out of the default and attach it.

    Return how many rows, and for how many ms writers were blocked; None when another run has done it meanwhile. Raise
    ClickException.
    """

    def attempt(wait_ms: int) -> tuple[int, float] | None:
        with transaction(connection, lock_timeout_ms=wait_ms):
            connection.run(IN_ORDER)
            database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
            if not query(connection, EMPTY_OF_OURS, table=month.table, parent=month.parent):
                return None
            connection.run(f"COMMENT ON TABLE {month.table} IS NULL")  # RECORD
            started = time.monotonic()
            for key in month.keys:
                connection.run(f"LOCK TABLE {key['target']} IN SHARE ROW EXCLUSIVE MODE")
            connection.run(f"LOCK TABLE ONLY {month.parent}, {month.default} IN ACCESS EXCLUSIVE MODE")
            connection.run(f"INSERT INTO {month.table} SELECT * FROM {month.default} WHERE {month.condition}")
            inserted = connection.row_count
            connection.run(f"DELETE FROM {month.default} WHERE {month.condition}")
            assert connection.row_count == inserted, "rows were deleted, although writers are blocked"
            connection.run(f"ALTER TABLE {month.parent} ATTACH PARTITION {month.table} {month.bounds}")
            connection.run(f"ALTER TABLE {month.table} DROP CONSTRAINT IF EXISTS partition_to_be")
        return inserted, (time.monotonic() - started) * 1000

    moved: tuple[int, float] | None = with_table_locks(connection, attempt, month.parent, month.default)
    return moved
