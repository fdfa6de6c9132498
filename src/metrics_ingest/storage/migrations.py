"""Schema migrations: yoyo over pg8000, one at a time across all machines, each all or nothing."""

import random
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
from metrics_ingest.storage.driver import connection_arguments

MONTHS_AHEAD = 2
# Whoever waits for a table lock makes every writer wait behind it, so nothing waits long: it gives up and tries again.
LOCK_TIMEOUT_MS = 500  # shorter than PostgreSQL's deadlock_timeout: should both wait for each other, ingestion wins
LOCK_PATIENCE_S = 600
LOCK_NOT_AVAILABLE = ("55P03", "40P01")
LOCK = "pg_advisory_lock(hashtext('metrics-ingest migrations'))"
UNLOCK = "pg_advisory_unlock(hashtext('metrics-ingest migrations'))"


class Pg8000Backend(yoyo.backends.DatabaseBackend):  # type: ignore[misc]  # yoyo carries no types
    """yoyo's PostgreSQL backend for pg8000, named postgresql+pg8000 in its URLs (entry point group yoyo.backends).

    It locks with a session's advisory lock, which a killed process cannot leave behind as it would yoyo's lock row; and
    it applies a migration and records it in one transaction, where yoyo's two could be torn apart.
    """

    driver_module = "pg8000.dbapi"
    _is_locked = False
    list_tables_sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema"

    def connect(self, dburi: Any) -> Any:
        """Connect to what a yoyo URL names, read by the same rules as DATABASE_URL."""
        database = read_database({"DATABASE_URL": str(dburi).replace("postgresql+pg8000", "postgresql", 1)})
        connection = pg8000.dbapi.connect(**connection_arguments(database, None))
        connection.autocommit = True
        return connection

    def init_database(self) -> None:
        """Nothing: PostgreSQL's DDL is transactional, and there is no lock table."""

    def begin(self) -> None:
        """Begin a transaction, in words: the connection is in autocommit mode."""
        super().begin()

    def commit(self) -> None:
        """Commit, likewise."""
        self.execute("COMMIT")
        self._in_transaction = False

    def rollback(self) -> None:
        """Roll back, likewise."""
        self.execute("ROLLBACK")
        self._in_transaction = False

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:  # noqa: ARG002  # yoyo's signature; a waiting session is no harm
        """Wait until no other session migrates this database; the server releases the lock when the session ends."""
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
        """This very connection: the steps belong to the transaction that records them."""
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
        """Do the work in a transaction, and again while others hold the locks that it needs.

        Raise the database's error when they have held them for LOCK_PATIENCE_S.
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
                time.sleep(random.uniform(0.5, 1.5))  # let through the writers that waited behind this one


def migrate(database: Database) -> list[str]:
    """Bring the schema up to date, make the months' partitions, and give the roles their rights.

    Return the names of what was applied.
    """
    with open_backend(database) as backend, backend.lock():
        pending = backend.to_apply(yoyo.read_migrations(str(directory())))
        applied = [migration.id for migration in pending]
        backend.apply_migrations(pending)
        backend.in_transaction(lambda: backend.execute(f"SELECT create_metrics_partitions({MONTHS_AHEAD})"))
        backend.in_transaction(lambda: backend.execute("SELECT grant_to_roles()"))
        return applied


def rollback(database: Database) -> list[str]:
    """Roll every migration back, the latest first: all tables and all data go. Return the names."""
    with open_backend(database) as backend, backend.lock():
        applied = backend.to_rollback(yoyo.read_migrations(str(directory())))
        names = [migration.id for migration in applied]
        backend.rollback_migrations(applied)
        return names


def open_backend(database: Database) -> Pg8000Backend:
    """Connect yoyo to the database. Raise pg8000's errors."""
    login = quote(database.user, safe="") + (f":{quote(database.password, safe='')}" if database.password else "")
    options = {"host": database.host, "port": database.port, "sslmode": database.sslmode}
    if database.sslrootcert:
        options["sslrootcert"] = database.sslrootcert
    url = f"postgresql+pg8000://{login}@/{quote(database.database, safe='')}?{urlencode(options)}"
    return yoyo.connections.get_backend(url)  # type: ignore[no-any-return]


def directory() -> Path:
    """Where the migrations are: in the package of an installed wheel, else in the checkout."""
    package = Path(metrics_ingest.__file__).parent
    installed = package / "sql"
    return installed if installed.is_dir() else package.parents[1] / "migrations"
