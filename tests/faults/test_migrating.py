"""Migrations run while metrics come in."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.load import Load
from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from metrics_ingest.storage.driver import connect
from support.processes import Server, query

pytestmark = pytest.mark.slow


@pytest.fixture
def with_addition(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database, with further migrations pending: new columns, and the functions replaced."""
    directory = tmp_path / "migrations"
    shutil.copytree(migrations.directory(), directory)
    (directory / "9001-add-a-column.sql").write_text(
        "ALTER TABLE users ADD COLUMN note varchar NOT NULL DEFAULT '';\n"
        "ALTER TABLE sessions ADD COLUMN note varchar NOT NULL DEFAULT '';\n"
        "ALTER TABLE metrics ADD COLUMN note varchar NOT NULL DEFAULT '';\n"
    )
    with (directory / "functions" / "store_metrics.sql").open("a") as file:
        file.write("COMMENT ON FUNCTION store_metrics IS 'replaced';\n")
    monkeypatch.setattr(migrations, "directory", lambda: directory)
    return database_url


@pytest.mark.parametrize("reader", [False, True], ids=["undisturbed", "behind-a-long-report"])
def test_additive_migrations_fail_no_request_and_hold_none_up(
    with_addition: str, serve: Callable[..., Server], reader: bool
) -> None:
    """A long report makes the migration wait for its lock; ingestion must not wait behind that."""
    database = read_database({"DATABASE_URL": with_addition})
    server = serve("ingest", with_addition)
    with Load(server.port, with_addition) as load:
        time.sleep(0.5)
        report = connect(database, 30)
        if reader:
            report.run("BEGIN")
            report.run("SELECT count(*) FROM metrics")
        migrating = threading.Thread(target=migrations.migrate, args=(database,))
        migrating.start()
        time.sleep(3 if reader else 1)
        report.close()
        migrating.join(20)
        assert not migrating.is_alive()
        query(with_addition, "SELECT create_metrics_partitions(12)")
        time.sleep(0.5)
    load.check_all_stored()
    assert load.statuses.keys() == {200}
    assert load.slowest < 2
    assert query(with_addition, "SELECT count(*) FROM metrics WHERE note <> ''") == [[0]]
    assert query(with_addition, "SELECT obj_description('store_metrics'::regproc, 'pg_proc')") == [["replaced"]]
