"""Schema migrations: yoyo over pg8000, one migrator at a time, each step in one transaction.

Tables, indexes, seed rows and roles are in `migrations/*.sql`: each file is applied once, and has its rollback.
Functions and views are in `migrations/functions/*.sql`, one subject a file, with CREATE OR REPLACE: `migrate` applies
all these files in one transaction when their text has changed. Where the database has the extension Citus, the files
`migrations/functions/citus/*.sql` follow, which replace some of the functions.

Other versions of the code run while `migrate` does. So a function whose arguments or result change gets a new name, and
so does a view that loses or changes a column (it may gain one at its end). The old one is dropped a release later, by
`DROP FUNCTION IF EXISTS old_name` in the same file.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pg8000.dbapi
import yoyo
import yoyo.backends
import yoyo.connections

import metrics_ingest
from metrics_ingest.settings import Database, read_database
from metrics_ingest.storage.driver import PIN_SESSION, connection_arguments

MONTHS_AHEAD = 2
# All writers queue behind a session that waits for a table lock. So it waits for a short time only, and tries again.
LOCK_TIMEOUT_MS = 500  # less than PostgreSQL's deadlock_timeout (1 s), so that in a deadlock the migration gives up
LOCK_PATIENCE_S = 600
LOCK_NOT_AVAILABLE = ("55P03", "40P01")
LOCK = "pg_advisory_lock(hashtext('metrics-ingest migrations'))"
UNLOCK = "pg_advisory_unlock(hashtext('metrics-ingest migrations'))"

FUNCTIONS = "functions"  # what migrate and rollback call the step that applies or drops functions and views
CREATED = re.compile(r"^CREATE OR REPLACE (FUNCTION|VIEW) (\w+)", re.MULTILINE)
# Not in a migration, because these privileges belong to the role that migrates, which may be another one the next time.
PRIVATE = "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;\n"
UNDO_PRIVATE = "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;\n"
# The hash of the applied text is the comment of a function, so that it is dropped together with the functions.
APPLIED_HASH = "SELECT obj_description(to_regprocedure('grant_to_roles()'), 'pg_proc')"
HAS_CITUS = "SELECT count(*) FROM pg_extension WHERE extname = 'citus'"


class UnknownMigrations(Exception):
    """The database has migrations that this version does not have."""


class Pg8000Backend(yoyo.backends.DatabaseBackend):  # type: ignore[misc]  # yoyo carries no types
    """yoyo's PostgreSQL backend for pg8000, named postgresql+pg8000 in its URLs (entry point group yoyo.backends).

    It differs from yoyo's in two ways. It takes an advisory lock, because yoyo's lock row outlives a killed process.
    It applies and records a migration in one transaction, because a kill between yoyo's two would leave no record.
    """

    driver_module = "pg8000.dbapi"
    _is_locked = False
    list_tables_sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema"

    def connect(self, dburi: Any) -> Any:
        """Connect to a yoyo URL, read by the same rules as DATABASE_URL."""
        database = read_database({"DATABASE_URL": str(dburi).replace("postgresql+pg8000", "postgresql", 1)})
        connection = pg8000.dbapi.connect(**connection_arguments(database, None))
        connection.autocommit = True
        connection.cursor().execute(PIN_SESSION)
        return connection

    def init_database(self) -> None:
        """Do nothing: PostgreSQL's DDL is transactional, and there is no lock table."""

    def begin(self) -> None:
        """Send BEGIN, because the connection is in autocommit mode."""
        super().begin()

    def commit(self) -> None:
        """Send COMMIT."""
        self.execute("COMMIT")
        self._in_transaction = False

    def rollback(self) -> None:
        """Send ROLLBACK."""
        self.execute("ROLLBACK")
        self._in_transaction = False

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:  # noqa: ARG002  # yoyo's signature; without a limit
        """Wait until no other session migrates this database. The server releases the lock when the session ends."""
        if self._is_locked:
            yield
            return
        self.execute(f"SELECT {LOCK}")
        self._is_locked = True
        try:
            yield
        finally:
            self._is_locked = False
            self.execute(f"SELECT {UNLOCK}")

    def copy(self) -> AbstractContextManager["Pg8000Backend"]:
        """Return this connection, because the steps belong to the transaction that records them."""
        return nullcontext(self)

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        """Apply a migration and record it, or neither."""
        self.ensure_internal_schema_updated()
        self.in_transaction(lambda: super(Pg8000Backend, self).apply_one(migration, force, mark))

    def rollback_one(self, migration: Any, force: bool = False) -> None:
        """Roll a migration back and record it, or neither."""
        self.ensure_internal_schema_updated()
        self.in_transaction(lambda: super(Pg8000Backend, self).rollback_one(migration, force))

    def in_transaction(self, work: Callable[[], object]) -> None:
        """Do the work in a transaction; repeat it as long as other sessions hold the locks that it needs.

        Raise the database's error after LOCK_PATIENCE_S.
        """
        end = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                with self.transaction():
                    self.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                    work()
                return
            except pg8000.dbapi.DatabaseError as error:
                if error.args[0].get("C") not in LOCK_NOT_AVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(random.uniform(0.5, 1.5))  # the writers that waited behind this session go first

    def value(self, sql: str) -> Any:
        """The first column of a query's first row."""
        return self.execute(sql).fetchone()[0]


def migrate(database: Database) -> list[str]:
    """Bring the schema up to date, create the months' partitions, and grant the roles their rights.

    Return the names of what was applied: migrations, then "functions". Raise UnknownMigrations, and pg8000's errors.
    """
    with open_backend(database) as backend, backend.lock():
        migrations = _known_migrations(backend)
        pending = backend.to_apply(migrations)
        names = [migration.id for migration in pending]
        backend.apply_migrations(pending)
        if _apply_functions(backend):
            names.append(FUNCTIONS)
        backend.in_transaction(lambda: backend.execute(f"SELECT create_metrics_partitions({MONTHS_AHEAD})"))
        backend.in_transaction(lambda: backend.execute("SELECT grant_to_roles()"))
        return names


def rollback(database: Database) -> list[str]:
    """Drop functions and views, then roll every migration back, the latest first: ALL DATA IS LOST.

    Return the names. Raise UnknownMigrations, and pg8000's errors.
    """
    with open_backend(database) as backend, backend.lock():
        migrations = backend.to_rollback(_known_migrations(backend))
        names = [migration.id for migration in migrations]
        if backend.value(APPLIED_HASH):
            backend.in_transaction(lambda: backend.execute(_drop_functions()))
            names.insert(0, FUNCTIONS)
        backend.rollback_migrations(migrations)
        return names


def _known_migrations(backend: Pg8000Backend) -> Any:
    """The migrations of this version. Raise UnknownMigrations when the database has others."""
    migrations = yoyo.read_migrations(str(directory()))
    backend.ensure_internal_schema_updated()
    applied = {name for (name,) in backend.execute("SELECT migration_id FROM _yoyo_migration").fetchall()}
    if unknown := sorted(applied - {migration.id for migration in migrations}):
        raise UnknownMigrations(
            f"the database has migrations that this version does not have: {', '.join(unknown)}. "
            "If a newer version made it, use that version. If an unreleased version made it, export its metrics and "
            "load them into a new database (`metrics-ingest export`, `metrics-ingest load`)"
        )
    return migrations


def _apply_functions(backend: Pg8000Backend) -> bool:
    """Apply functions and views in one transaction if their text has changed, and return whether it had."""
    files = _function_files()
    if backend.value(HAS_CITUS):
        files += sorted((directory() / FUNCTIONS / "citus").glob("*.sql"))
    text = PRIVATE + "".join(file.read_text("utf-8") for file in files)
    applied_hash = hashlib.sha256(text.encode()).hexdigest()
    if backend.value(APPLIED_HASH) == applied_hash:
        return False
    text += f"COMMENT ON FUNCTION grant_to_roles() IS '{applied_hash}'"
    backend.in_transaction(lambda: backend.execute(text))
    return True


def _drop_functions() -> str:
    """The statements that drop all functions and views, in reverse order, because a view uses what precedes it."""
    created = [match for file in _function_files() for match in CREATED.findall(file.read_text("utf-8"))]
    drops = [f"DROP {kind} IF EXISTS {name};\n" for kind, name in reversed(created)]
    return "".join(drops) + UNDO_PRIVATE


def _function_files() -> list[Path]:
    return sorted((directory() / FUNCTIONS).glob("*.sql"))


def open_backend(database: Database) -> Pg8000Backend:
    """Connect yoyo to the database. Raise pg8000's errors."""
    login = quote(database.user, safe="") + (f":{quote(database.password, safe='')}" if database.password else "")
    options = {"host": database.host, "port": database.port, "sslmode": database.sslmode}
    if database.sslrootcert:
        options["sslrootcert"] = database.sslrootcert
    url = f"postgresql+pg8000://{login}@/{quote(database.database, safe='')}?{urlencode(options)}"
    return yoyo.connections.get_backend(url)  # type: ignore[no-any-return]


def directory() -> Path:
    """The folder with the migrations: in the package when installed from a wheel, else in the checkout."""
    package = Path(metrics_ingest.__file__).parent
    installed = package / "sql"
    return installed if installed.is_dir() else package.parents[1] / "migrations"
