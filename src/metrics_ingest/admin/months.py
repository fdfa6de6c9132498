"""The tables that are to become partitions: one for each missing month, or a new default."""

from typing import Any, NamedTuple

from metrics_ingest.admin import database
from metrics_ingest.admin.catalog import EMPTY_OF_OURS, IS_PARTITION, RECORD
from metrics_ingest.admin.console import Record
from metrics_ingest.admin.database import query, transaction, with_table_locks

HAS_CITUS = "SELECT 1 FROM pg_extension WHERE extname = 'citus'"
IS_DISTRIBUTED = "SELECT 1 FROM pg_dist_partition WHERE logicalrelid = to_regclass(:parent)"
DISTRIBUTE = "SELECT create_distributed_table(to_regclass(:table), 'user_id', colocate_with => CAST(:parent AS text))"


class Partition(NamedTuple):
    """A partition to be made: its table, and the rows of the default that belong to it."""

    parent: str
    table: str
    condition: str  # of its rows
    bounds: str
    rows: int  # in the default, when the run began
    keys: list[Record]  # FOREIGN_KEYS of the parent

    @property
    def default(self) -> str:
        """The table that its rows are in."""
        return f"{self.parent}_default"

    @property
    def is_default(self) -> bool:
        """Whether it is to replace the default."""
        return self.bounds == "DEFAULT"


def new_default(months: list[Partition]) -> Partition:
    """Return a partition for the rows of the default that belong to none of the months."""
    others = " AND ".join(f"NOT ({month.condition})" for month in months)
    table = f"{months[0].parent}_default_next"
    return months[0]._replace(table=table, condition=others, bounds="DEFAULT", rows=0)


def prepare(connection: Any, partition: Partition) -> bool:
    """Create the partition's empty table, with everything that attaching it would have to build.

    Return False when there is a table with its name that this program did not make, or that has rows. Another run may
    have attached it meanwhile.
    """

    def attempt(wait_ms: int) -> bool:
        with transaction(connection, lock_timeout_ms=wait_ms):
            database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
            if query(connection, IS_PARTITION, parent=partition.parent, partition=partition.table):
                return True
            if connection.run("SELECT WHERE to_regclass(:table) IS NOT NULL", table=partition.table):
                found = query(connection, EMPTY_OF_OURS, table=partition.table, parent=partition.parent)
                if not found or connection.run(f"SELECT 1 FROM {partition.table} LIMIT 1"):
                    return False
                if found[0]["same_columns"]:
                    return True
                connection.run(f"LOCK TABLE {partition.table} IN ACCESS EXCLUSIVE MODE")
                if connection.run(f"SELECT 1 FROM {partition.table} LIMIT 1"):
                    return False
                connection.run(f"DROP TABLE {partition.table}")
            # With the parent's indexes and a check that implies the bounds, attaching scans and builds nothing. None
            # would imply a default's, so that one is scanned: it has few rows, of months that could not be prepared.
            check = "" if partition.is_default else f", CONSTRAINT partition_to_be CHECK ({partition.condition})"
            connection.run(f"CREATE TABLE {partition.table} (LIKE {partition.parent} INCLUDING ALL{check})")
            if connection.run(HAS_CITUS) and connection.run(IS_DISTRIBUTED, parent=partition.parent):
                connection.run(DISTRIBUTE, table=partition.table, parent=partition.parent)
            for key in partition.keys:
                connection.run(f"ALTER TABLE {partition.table} ADD CONSTRAINT {key['conname']} {key['definition']}")
            ((owner, current),) = connection.run(
                "SELECT quote_ident(pg_get_userbyid(relowner)), quote_ident(current_user) FROM pg_class"
                " WHERE oid = to_regclass(:parent)", parent=partition.parent)  # fmt: skip
            if owner != current:  # else that role could not migrate any more
                connection.run(f"ALTER TABLE {partition.table} OWNER TO {owner}")
            connection.run(f"COMMENT ON TABLE {partition.table} IS '{RECORD}'")
        return True

    return bool(with_table_locks(connection, attempt))
