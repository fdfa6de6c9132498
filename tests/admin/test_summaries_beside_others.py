"""The summaries beside other transactions, restores, retention, and clocks that are wrong."""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from admin.test_summaries import differences, sample, users
from metrics_ingest.admin import summaries
from metrics_ingest.local.postgres import utils
from support.console import Console, ingest
from support.processes import Postgres, connected, eventually

__all__ = ["users"]  # the fixture
REFRESHED = {"metrics": 1, "sessions": 1, "user_days": 1, "type_hours": 1}


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


def restore(source: Console, cluster: Postgres, dump: Path) -> Console:
    """The database, dumped and restored into another cluster."""
    bin_directory = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    cluster.run(f"CREATE DATABASE {dump.stem}")
    subprocess.run([bin_directory / "pg_dump", "--format=custom", f"--file={dump}", source.url], check=True)
    url = cluster.url(dump.stem)
    subprocess.run([bin_directory / "pg_restore", "--exit-on-error", f"--dbname={url}", dump], check=True)
    return Console(url)


def test_restored_dump_in_a_cluster_with_lower_transaction_ids_loses_nothing(
    users: Console, other_cluster: Postgres, tmp_path: Path
) -> None:
    """Neither what was pending in the dump nor what comes afterwards."""
    connection = users.connect()
    for _ in range(2_000):
        connection.run("SELECT pg_current_xact_id()")
    connection.close()
    users.ingest(sample(1, 1, "talked_time", 5))
    users.run("summaries", "refresh")
    users.ingest(sample(1, 2, "talked_time", 7))  # pending in the dump
    restored = restore(users, other_cluster, tmp_path / "restored.dump")
    source, target = (console.sql("SELECT pg_current_xact_id()::text::bigint")[0][0] for console in (users, restored))
    assert target < source
    assert restored.json("summaries", "refresh") == REFRESHED
    assert differences(restored) == {}
    restored.ingest(sample(2, 3, "talked_time", 9))
    assert restored.json("summaries", "refresh") == REFRESHED
    assert differences(restored) == {}


@pytest.mark.parametrize("hours", [-30, 30])
def test_clock_that_was_wrong_loses_nothing(users: Console, hours: int) -> None:
    """received_at, the start of a transaction, is not what tells new metrics."""
    users.ingest(sample(1, 1, "talked_time", 5))
    users.sql("UPDATE metrics SET received_at = now() + :hours * interval '1 hour'", hours=hours)
    users.run("summaries", "refresh")
    users.ingest(sample(1, 2, "talked_time", 7))
    users.sql("UPDATE metrics SET received_at = now() - :hours * interval '1 hour' WHERE value = 7", hours=hours)
    assert users.json("summaries", "refresh") == REFRESHED
    assert differences(users) == {}


def test_open_transaction_in_another_database_makes_nothing_counted_again(users: Console, postgres: Postgres) -> None:
    """Nor waited for: the numbers that were rolled back here are struck out at once."""
    with connected(postgres.clone()) as other, connected(users.url) as aborted:
        other.run("BEGIN")
        other.run("INSERT INTO users (user_id, name) VALUES (gen_random_uuid(), 'Greg')")
        other.run("LOCK TABLE metrics IN ROW EXCLUSIVE MODE")
        for number in range(3):
            aborted.run("BEGIN")
            aborted.run(ingest(sample(2, number, "talked_time", 5)))
            aborted.run("ROLLBACK")
            users.ingest(sample(1, number, "talked_time", 5))
            assert users.json("summaries", "refresh") == REFRESHED
            assert users.sql("SELECT unseen::text FROM summary_state") == [[f"{{[{2 * number + 3},)}}"]]
        other.run("ROLLBACK")
    assert differences(users) == {}


def test_numbers_of_an_open_transaction_stay_unseen_until_it_ends(users: Console) -> None:
    """Those that it rolls back, too: of a number alone nobody knows whether its metric will come."""
    slow = users.connect()
    slow.run("BEGIN")
    slow.run(ingest(sample(1, 1, "talked_time", 5)))
    users.ingest(sample(2, 1, "talked_time", 7))
    for _ in range(3):
        users.run("summaries", "refresh")
        assert users.sql("SELECT unseen::text FROM summary_state") == [["{[1,2),[3,)}"]]
    slow.run("ROLLBACK")
    slow.close()
    assert users.json("summaries", "refresh")["metrics"] == 0
    assert users.sql("SELECT unseen::text FROM summary_state") == [["{[3,)}"]]
    assert differences(users) == {}


@pytest.mark.parametrize("name", ["fresh", "part", "new_metric", "changed_session", "step", "late"])
def test_tables_of_the_operator_shadow_nothing(users: Console, name: str) -> None:
    users.sql(f"CREATE TABLE public.{name} AS SELECT * FROM metrics")
    users.ingest(sample(1, 1, "talked_time", 5))
    assert users.json("summaries", "refresh") == REFRESHED
    assert differences(users) == {}


def test_default_isolation_level_of_the_database_changes_nothing(users: Console) -> None:
    """With one snapshot for the transaction, metrics that were not visible would be taken for seen."""
    ((name,),) = users.sql("SELECT current_database()")
    users.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    users.ingest(sample(1, 1, "talked_time", 5))
    assert users.json("summaries", "refresh") == REFRESHED
    with connected(users.url) as connection, pytest.raises(Exception, match="needs a READ COMMITTED transaction"):
        connection.run("SELECT refresh_summaries()")


def test_sequence_that_is_behind_starts_the_summaries_again(users: Console) -> None:
    """As after a failover to a logical replica, which has no sequences: numbers are taken twice."""
    users.ingest(*(sample(1, second, "talked_time", 5) for second in range(5)))
    users.run("summaries", "refresh")
    users.sql("ALTER SEQUENCE metrics_arrival_seq RESTART")
    users.ingest(sample(1, 7, "talked_time", 7))
    assert users.json("summaries", "refresh")["metrics"] == 6
    users.ingest(sample(1, 8, "talked_time", 7))
    assert users.json("summaries", "refresh") == REFRESHED
    assert differences(users) == {}


def test_long_refresh_holds_up_others_for_a_step_at_most(users: Console) -> None:
    """Steps are committed: what was merged before an interruption stays merged, and is merged once."""
    ((source,),) = users.sql("SELECT pg_get_functiondef('refresh_summaries_step'::regproc)")
    users.sql(source.replace("200000", "10"))
    users.ingest(*(sample(1, second, "talked_time", 5) for second in range(95)))
    step = "SELECT CAST(refresh_summaries_step(0) ->> 'next' AS bigint)"
    assert users.sql(step) == [[10]]
    assert users.sql(step) == [[20]]  # the next refresh continues
    users.ingest(sample(1, 100, "talked_time", 7))
    assert users.json("summaries", "refresh")["metrics"] == 76
    assert differences(users) == {}


def test_refresh_that_fails_in_a_later_step_keeps_what_it_has_merged(users: Console) -> None:
    """Each step is a transaction: it is how long an erasure or a drop waits for a long refresh."""
    ((source,),) = users.sql("SELECT pg_get_functiondef('refresh_summaries_step'::regproc)")
    users.sql(source.replace("200000", "10"))
    users.ingest(*(sample(1, second, "talked_time", 5) for second in range(45)))
    users.sql("ALTER TABLE type_hour_rollup ADD CONSTRAINT full_hour CHECK (metric_count <= 25)")
    users.run("summaries", "refresh", exit_code=1)
    assert users.sql("SELECT metric_count FROM type_hour_rollup") == [[20]]
    users.sql("ALTER TABLE type_hour_rollup DROP CONSTRAINT full_hour")
    assert users.json("summaries", "refresh")["metrics"] == 25
    assert differences(users) == {}


def test_session_that_began_before_a_dropped_month_continues(users: Console) -> None:
    """Its dropped part stays in its summary."""
    users.ingest(sample(1, 0, "talked_time", 5))
    users.run("partitions", "maintain", "--yes")
    users.run("partitions", "maintain", "--keep", "12mo", "--yes")
    assert users.sql("SELECT count(*) FROM metrics") == [[0]]
    users.ingest(sample(1, 86_400 * 800, "talked_time", 7), sample(1, 86_400, "talked_time", 100))  # one is too late
    users.run("summaries", "refresh")
    found = users.sql("SELECT metric_count, value, shift FROM session_type_summary")
    assert found == [[2, 12, 2]]


def test_metrics_that_come_between_refresh_and_drop_are_summarised(
    users: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.ingest(sample(1, 0, "talked_time", 5))
    users.run("partitions", "maintain", "--yes")
    original = summaries.refresh_before_drop

    def refresh_before_drop(connection: object) -> None:
        original(connection)
        users.ingest(sample(1, 1, "talked_time", 7))

    monkeypatch.setattr(summaries, "refresh_before_drop", refresh_before_drop)
    users.run("partitions", "maintain", "--keep", "12mo", "--yes")
    assert users.sql("SELECT count(*) FROM metrics") == [[0]]
    assert users.sql("SELECT metric_count, value FROM session_type_summary") == [[2, 12]]


def test_drop_waits_for_a_refresh_and_loses_nothing(users: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another refresh begins after the last one of the drop, and with it a metric comes. No writer waits meanwhile."""
    users.ingest(sample(1, 0, "talked_time", 5))
    users.run("partitions", "maintain", "--yes")
    other = users.connect()
    original = summaries.refresh_before_drop

    def refresh_before_drop(connection: object) -> None:
        original(connection)
        users.ingest(sample(1, 1, "talked_time", 7))
        other.run("BEGIN; SELECT pg_advisory_xact_lock(hashtext('metrics-ingest summaries'))")

    monkeypatch.setattr(summaries, "refresh_before_drop", refresh_before_drop)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(users.run, "partitions", "maintain", "--keep", "12mo", "--yes")
        eventually(users.waits)
        users.ingest(sample(1, 86_400 * 800, "talked_time", 1))
        other.run("COMMIT")
        assert "warning" not in done.result(60).stderr
    other.close()
    assert users.sql("SELECT count(*) FROM metrics") == [[1]]
    assert users.sql("SELECT metric_count, value FROM session_type_summary") == [[3, 13]]


def test_one_metric_more_in_a_large_bucket_is_merged_not_counted_again(users: Console) -> None:
    """Were it counted again, the count would be that of the metrics."""
    users.ingest(sample(1, 1, "talked_time", 5))
    users.run("summaries", "refresh")
    for rollup in ("session_rollup", "user_day_rollup", "type_hour_rollup"):
        users.sql(f"UPDATE {rollup} SET metric_count = 1000000")
    users.ingest(sample(1, 2, "talked_time", 5))
    users.run("summaries", "refresh")
    for rollup in ("session_rollup", "user_day_rollup", "type_hour_rollup"):
        assert users.sql(f"SELECT metric_count, total FROM {rollup}") == [[1000001, 10]]


def test_drain_and_erasure_beside_refreshes_lose_and_double_nothing(users: Console) -> None:
    """Writers of which some roll back, late months, drains, erasures: afterwards every bucket equals a recount."""
    end = time.monotonic() + 6
    gone = users.user()

    def write(user: int) -> None:
        with connected(users.url) as connection:
            second = 0
            while time.monotonic() < end:
                connection.run("BEGIN")
                for _ in range(3):
                    second += 1
                    connection.run(ingest(sample(user, second * 7000, "talked_time", second / 10, session=second % 5)))
                connection.run("ROLLBACK" if second % 4 == 0 else "COMMIT")

    def repeat(*arguments: str) -> None:
        while time.monotonic() < end:
            users.run(*arguments)

    users.ingest(*(sample(1, n * 60, "talked_time", 1) | {"user_id": gone} for n in range(200)))
    with ThreadPoolExecutor() as pool:
        tasks: list[Future[Any]] = [pool.submit(write, user) for user in range(3)]
        tasks.append(pool.submit(repeat, "summaries", "refresh"))
        tasks.append(pool.submit(repeat, "partitions", "maintain", "--yes"))
        tasks.append(pool.submit(users.run, "user", "forget", gone, "--yes"))
        for task in tasks:
            task.result()
    users.run("summaries", "refresh")
    assert differences(users) == {}
