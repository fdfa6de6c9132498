"""Schema migrations: yoyo over pg8000, one migrator at a time, each step in one transaction.

Tables, indexes, seed rows and roles are in `migrations/*.sql`: each file is applied once, and has its rollback.
Functions and views are in `migrations/functions/*.sql`: `migrate` applies all of them when their text has changed, and
with the extension Citus then `migrations/functions/citus/*.sql`, which replace some of the functions.

Other versions of the code run meanwhile. So a function whose arguments or result change gets a new name, and so does a
view that loses or changes a column (it may gain one at its end); its file drops the old one a release later.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import yoyo
import yoyo.backends
from pg8000.exceptions import Error

import metrics_ingest
from metrics_ingest.settings import Database
from metrics_ingest.storage.driver import PIN_SESSION, PIN_TRANSACTION, DatabaseSocket, connect, connect_dbapi
from metrics_ingest.storage.table_locks import TablesLocked, retry_until_locked

MONTHS_AHEAD = 2
LOCK_PATIENCE_S = 600
LOCK = "SELECT pg_advisory_xact_lock(hashtext('metrics-ingest migrations'))"

FUNCTIONS = "functions"  # what migrate and rollback call the step that applies or drops functions and views
CREATED = re.compile(r"^CREATE OR REPLACE (FUNCTION|VIEW) (\w+)", re.MULTILINE)
# Not in a migration, because these privileges belong to the role that migrates, which may be another one the next time.
PRIVATE = "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;\n"
UNDO_PRIVATE = "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;\n"
# The hash of the applied text is the comment of a function, so that it is dropped together with the functions.
APPLIED_HASH = "SELECT obj_description(to_regprocedure('grant_to_roles()'), 'pg_proc')"
HAS_CITUS = "SELECT 1 FROM pg_extension WHERE extname = 'citus'"


class UnknownMigrations(Exception):
    """The database has migrations that this version does not have."""


class Migrator(yoyo.backends.DatabaseBackend):  # type: ignore[misc]  # yoyo carries no types
    """yoyo's backend for pg8000. It holds an advisory lock, because yoyo's lock row outlives a kill.

    The lock belongs to a transaction on a connection of its own, which stays open until the end: a lock of a session
    would stay with a connection of the pooler, where there is one in transaction mode, and be held for ever.
    """

    driver_module = "pg8000.dbapi"
    list_tables_sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema"

    def __init__(self, database: Database) -> None:
        """Connect, and wait until no other session migrates this database. Raise pg8000's errors."""
        self._lock_connection = connect(database, None)
        try:
            self._lock_connection.run(f"BEGIN; {PIN_TRANSACTION}")
            self._lock_connection.run(LOCK)
            super().__init__(database, "_yoyo_migration")
        except BaseException:
            self._close_lock_connection()
            raise

    def __exit__(self, *exception: Any) -> None:
        """Close both connections, also broken ones."""
        opened = DatabaseSocket(self.connection)
        with suppress(Error, OSError):
            super().__exit__(*exception)
        opened.close()  # pg8000 leaves its file open
        self._close_lock_connection()

    def _close_lock_connection(self) -> None:
        with suppress(Error, OSError):
            self._lock_connection.close()

    def connect(self, database: Database) -> Any:
        """Open a connection in autocommit mode, because yoyo sends BEGIN itself."""
        connection = connect_dbapi(database, None)
        connection.autocommit = True
        connection.cursor().execute(PIN_SESSION)
        return connection

    def lock(self) -> AbstractContextManager[None]:
        """Do nothing: the lock is held already."""
        return nullcontext()

    def copy(self) -> AbstractContextManager["Migrator"]:
        """Return this connection, because the steps belong to the transaction that records them."""
        return nullcontext(self)

    def in_transaction(self, work: Callable[..., object], *arguments: object) -> None:
        """Do the work in a transaction; repeat it for LOCK_PATIENCE_S while other sessions hold the locks it needs."""

        def attempt(wait_ms: int) -> None:
            with self.transaction():
                # Again in each transaction, because a pooler may have given it another session than the last one.
                self.execute(PIN_TRANSACTION)
                self.execute(f"SET LOCAL lock_timeout = {wait_ms}")
                work(*arguments)

        try:
            retry_until_locked(self.execute, attempt, patience_s=LOCK_PATIENCE_S)
        except TablesLocked as error:
            raise error.__cause__ or error from None


def migrate(database: Database) -> list[str]:
    """Bring the schema up to date, create the months' partitions, and grant the roles their rights.

    Return the names of what was applied: migrations, then "functions". Raise UnknownMigrations, and pg8000's errors.
    """
    names = []
    with Migrator(database) as migrator:
        for migration in migrator.to_apply(_known_migrations(migrator)):
            # In one transaction with its record: a kill between yoyo's two would leave no record.
            migrator.in_transaction(migrator.apply_one, migration)
            names.append(migration.id)
        if _apply_functions(migrator):
            names.append(FUNCTIONS)
        migrator.in_transaction(migrator.execute, f"SELECT create_metrics_partitions({MONTHS_AHEAD})")
        migrator.in_transaction(migrator.execute, "SELECT grant_to_roles()")
    return names


def rollback(database: Database) -> list[str]:
    """Undo what migrate applied, the latest first: ALL DATA IS LOST. Return the names; raise what migrate raises."""
    names = []
    with Migrator(database) as migrator:
        migrations = migrator.to_rollback(_known_migrations(migrator))
        if migrator.execute(APPLIED_HASH).fetchone()[0]:
            created = reversed(CREATED.findall(_functions() + _functions("citus")))  # a view uses what precedes it
            drops = "".join(f"DROP {kind} IF EXISTS {name};\n" for kind, name in created)
            migrator.in_transaction(migrator.execute, drops + UNDO_PRIVATE)
            names.append(FUNCTIONS)
        for migration in migrations:
            migrator.in_transaction(migrator.rollback_one, migration)
            names.append(migration.id)
    return names


def _known_migrations(migrator: Migrator) -> Any:
    """The migrations of this version. Raise UnknownMigrations when the database has others."""
    migrations = yoyo.read_migrations(str(directory()))
    migrator.ensure_internal_schema_updated()
    applied = {name for (name,) in migrator.execute("SELECT migration_id FROM _yoyo_migration").fetchall()}
    if unknown := sorted(applied - {migration.id for migration in migrations}):
        raise UnknownMigrations(
            f"the database has migrations that this version does not have: {', '.join(unknown)}. "
            "If a newer version made it, use that version. If an unreleased version made it, export its metrics and "
            "load them into a new database (`metrics-ingest export`, `metrics-ingest load`)"
        )
    return migrations


def _apply_functions(migrator: Migrator) -> bool:
    """Apply functions and views in one transaction if their text has changed, and return whether it had."""
    text = PRIVATE + _functions()
    if migrator.execute(HAS_CITUS).fetchone():
        text += _functions("citus") + private_on_all_nodes()
    applied_hash = hashlib.sha256(text.encode()).hexdigest()
    if migrator.execute(APPLIED_HASH).fetchone()[0] == applied_hash:
        return False
    text += f"COMMENT ON FUNCTION grant_to_roles() IS '{applied_hash}'"
    migrator.in_transaction(migrator.execute, text)
    return True


def private_on_all_nodes() -> str:
    """The SQL that lets nobody else call our functions on the other nodes of Citus, where PRIVATE has no effect."""
    names = {name for kind, name in CREATED.findall(_functions() + _functions("citus")) if kind == "FUNCTION"}
    return "".join(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC;\n" for name in sorted(names))


def _functions(folder: str = "") -> str:
    """The SQL of all files in a folder of functions, in the order of their names."""
    return "".join(file.read_text("utf-8") for file in sorted((directory() / FUNCTIONS / folder).glob("*.sql")))


def directory() -> Path:
    """The folder with the migrations: in the package when installed from a wheel, else in the checkout."""
    package = Path(metrics_ingest.__file__).parent
    installed = package / "sql"
    return installed if installed.is_dir() else package.parents[1] / "migrations"
