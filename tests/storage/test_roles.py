"""The database's roles: each logs in and tries what it must not do."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from uuid import uuid4

import pg8000.native
import pytest
import requests

from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from metrics_ingest.storage.driver import connect
from metrics_ingest.storage.operations import Operation, execute_blocking
from support.processes import ROOT, Postgres, Server, query

NOTHING = "SELECT store_metrics('{}', '{}', '{}', '{}', '{}', '{}', '{}')"


def ingesting(user: str, value: float = 1, metric_type: str = "talked_time") -> str:
    """The statement that stores a metric."""
    return (
        f"SELECT store_metrics('{{{user}}}', '{{2024-08-08T12:34:56Z}}', '{{{uuid4()}}}', '{{{uuid4()}}}',"
        f" '{{{metric_type}}}', '{{{value}}}', '{{t}}')"
    )


FORBIDDEN = {"42501": "insufficient_privilege", "25006": "read_only_sql_transaction"}


def as_role(url: str, role: str) -> str:
    return url.replace("postgresql://postgres@", f"postgresql://{role}@")


@pytest.fixture(scope="module")
def logins(postgres: Postgres) -> Iterator[None]:
    """An operator's work, the way SECURITY.md says: the roles may log in, and an application has a login of its own."""
    for statement in (
        "ALTER ROLE metrics_writer LOGIN",
        "ALTER ROLE metrics_reader LOGIN",
        "CREATE ROLE security_app LOGIN IN ROLE metrics_writer",
        "ALTER ROLE security_app SET statement_timeout = '60s'",
    ):
        postgres.run(statement)
    yield
    postgres.run("DROP ROLE security_app")
    postgres.run("ALTER ROLE metrics_reader NOLOGIN")
    postgres.run("ALTER ROLE metrics_writer NOLOGIN")


@pytest.fixture(scope="module")
def url(postgres: Postgres, logins: None) -> str:
    return postgres.clone()


def sqlstate(url: str, *statements: str) -> str:
    """How the database refuses one of the statements; empty when it does not."""
    connection = connect(read_database({"DATABASE_URL": url}), 30)
    try:
        for statement in statements:
            connection.run(statement)
    except pg8000.native.DatabaseError as error:
        return str(error.args[0]["C"])
    finally:
        connection.close()
    return ""


WRITES = [
    "INSERT INTO users (user_id, name) VALUES (gen_random_uuid(), 'x')",
    "UPDATE metrics SET value = 0",
    "DELETE FROM metrics",
    "TRUNCATE metrics",
    "DROP TABLE metrics",
    "ALTER TABLE metrics ADD COLUMN x int",
    "UPDATE metric_types SET max_value = 1e9",
    "DELETE FROM _yoyo_migration",
    "BEGIN; LOCK TABLE metrics IN ACCESS EXCLUSIVE MODE",
    "CREATE TABLE public.mine (x int)",
    "CREATE VIEW public.mine AS SELECT 1",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "CREATE TRIGGER mine BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE OR REPLACE FUNCTION register_users(batch json) RETURNS json LANGUAGE sql AS 'SELECT NULL::json'",
    "ALTER FUNCTION store_metrics SECURITY INVOKER",
    "SELECT create_metrics_partitions(1000)",
    "SELECT grant_to_roles()",
    "GRANT metrics_writer TO metrics_reader",
    "ALTER ROLE metrics_writer SUPERUSER",
    "CREATE ROLE mine",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY users TO '/tmp/never'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "ALTER SYSTEM SET fsync = off",
]
READS = [f"SELECT * FROM {table}" for table in ("users", "metrics", "sessions", "metric_types", "metrics_default")] + [
    "COPY metrics TO STDOUT",
    "SELECT passwd FROM pg_shadow",
    "SELECT * FROM _yoyo_migration",
]


@pytest.mark.parametrize("role", ["metrics_writer", "security_app"])
@pytest.mark.parametrize("sql", WRITES + READS)
def test_writer_may_do_nothing_by_itself(url: str, role: str, sql: str) -> None:
    assert sqlstate(as_role(url, role), sql) == "42501"


def test_writer_stores_through_the_functions(url: str) -> None:
    user = str(uuid4())
    writer = as_role(url, "metrics_writer")
    query(writer, f"""SELECT register_users('[{{"user_id":"{user}","name":"Greg","email":null}}]')""")
    assert query(writer, ingesting(user)) == [[None]]
    assert query(url, "SELECT count(*) FROM metrics WHERE user_id = :user_id", user_id=user) == [[1]]


def test_statement_keeps_sql_out_even_where_validation_failed(url: str) -> None:
    user = uuid4()
    query(url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")
    connection = connect(read_database({"DATABASE_URL": url}), 30)
    drop = "; DROP TABLE metrics; --"
    for trick in (f"talked_time}}'){drop}", "'", f"\\'{drop}", f"'::text || ARRAY['a'], '{{1, 1}}'){drop}"):
        (outcome,) = execute_blocking(
            connection, Operation.STORE_METRICS, [(user.bytes, 0, user.bytes, user.bytes, trick, 1.0)]
        )
        assert outcome.kind == "unknown_metric_type"
        execute_blocking(connection, Operation.REGISTER_USERS, [{"user_id": user, "name": trick, "email": trick}])
    connection.close()
    assert query(url, "SELECT count(*) FROM metrics WHERE user_id = :u", u=user) == [[0]]
    assert query(url, "SELECT name FROM users WHERE user_id = :u", u=user) == [[trick]]


def test_functions_of_the_cloud_run_as_the_writer(url: str, serve: Callable[..., Server]) -> None:
    writer = as_role(url, "metrics_writer")
    user = requests.post(serve("users", writer).url, json={"name": "Greg"}, timeout=10).json()["user_id"]
    metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T12:34:56Z"}
    many = [metric, {**metric, "user_id": str(uuid4())}]
    answer = requests.post(serve("ingest_batch", writer).url, json=many, timeout=10)
    assert (answer.status_code, answer.json()["stored"]) == (207, 1)


@pytest.mark.parametrize("sql", WRITES)
def test_reader_may_change_nothing(url: str, sql: str) -> None:
    assert sqlstate(as_role(url, "metrics_reader"), sql) in FORBIDDEN
    assert sqlstate(as_role(url, "metrics_reader"), "SET default_transaction_read_only = off", sql) == "42501"


def test_reader_may_read_every_table_also_of_later_migrations(url: str) -> None:
    query(url, "CREATE TABLE IF NOT EXISTS later (x int)")
    query(url, "SELECT create_metrics_partitions(5)")
    tables = query(url, "SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        assert sqlstate(as_role(url, "metrics_reader"), f"SELECT * FROM {table} LIMIT 1") == "", table


def test_reader_may_not_write_through_the_functions(url: str) -> None:
    for statement in (NOTHING, "SELECT register_users('[]')"):
        assert sqlstate(as_role(url, "metrics_reader"), statement) == "42501"


def test_only_the_writer_may_call_what_runs_as_the_owner(url: str) -> None:
    """Also of later migrations: every SECURITY DEFINER function has a fixed path with pg_temp last."""
    functions = query(
        url,
        """SELECT proname, prosecdef, provolatile = 'i', array_to_string(proconfig, ';'),
                  has_function_privilege('metrics_writer', oid, 'EXECUTE'),
                  has_function_privilege('metrics_reader', oid, 'EXECUTE')
           FROM pg_proc WHERE pronamespace = 'public'::regnamespace""",
    )
    assert {"store_metrics", "check_and_store_metrics", "register_users"} <= {
        name for name, definer, *_ in functions if definer
    }
    for name, definer, immutable, settings, writer, reader in functions:
        assert (writer, reader) == (definer, immutable), name
        own_path = "search_path=pg_catalog, public, pg_temp" in (settings or "")
        called_by_store_metrics_alone = name in ("insert_metric", "insert_metrics")  # with its path
        assert own_path or immutable or called_by_store_metrics_alone, name
    assert sqlstate(as_role(url, "metrics_reader"), "SELECT * FROM session_summary") == ""


def test_functions_are_not_public_even_where_that_is_the_default(postgres: Postgres) -> None:
    """As for a superuser who migrates a database of the owner: default privileges belong to whoever created them."""
    url = postgres.clone()
    public = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND {} ORDER BY 1"
    names = query(url, public.format("true"))
    for kind, name in [("VIEW", "session_summary"), ("VIEW", "session_type_summary"), ("VIEW", "user_day_summary"),
                       ("VIEW", "type_hour_summary"), *(("FUNCTION", name) for (name,) in names)]:  # fmt: skip
        query(url, f"DROP {kind} {name}")
    query(url, "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC")
    assert migrations.migrate(read_database({"DATABASE_URL": url})) == ["functions"]
    assert query(url, public.format("true")) == names
    assert query(url, public.format("has_function_privilege('pg_monitor', oid, 'EXECUTE')")) == []


def test_timeouts_stand_on_the_roles(url: str) -> None:
    for role in ("metrics_writer", "metrics_reader"):
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            ((value,),) = query(as_role(url, role), f"SHOW {name}")
            assert value != "0", (role, name)
    assert query(as_role(url, "security_app"), "SHOW statement_timeout") == [["1min"]]
    query(
        url,
        "ALTER ROLE metrics_writer IN DATABASE current SET statement_timeout = '1s'".replace("current", name_of(url)),
    )
    assert sqlstate(as_role(url, "metrics_writer"), "SELECT pg_sleep(20)") == "57014"


def name_of(url: str) -> str:
    return read_database({"DATABASE_URL": url}).database


HIJACKS = {
    "tables": """CREATE TEMP TABLE users (LIKE public.users);
                 CREATE TEMP TABLE metric_types AS SELECT
                     'talked_time'::varchar AS metric_type, 'gauge'::varchar AS kind,
                     NULL::float8 AS min_value, NULL::float8 AS max_value, NULL::timestamptz AS retired_at;
                 CREATE TEMP TABLE sessions (user_id uuid, session_id uuid, start_time timestamptz);
                 CREATE TEMP TABLE metrics (user_id uuid)""",
    "functions": """CREATE FUNCTION pg_temp.json_to_recordset(json) RETURNS SETOF record LANGUAGE plpgsql
                    AS $$ BEGIN RAISE EXCEPTION 'hijacked as %', current_user; END $$;
                    CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE plpgsql
                    AS $$ BEGIN RAISE EXCEPTION 'hijacked as %', current_user; END $$""",
    "operators": """CREATE FUNCTION pg_temp.equal(varchar, varchar) RETURNS boolean LANGUAGE plpgsql
                    AS $$ BEGIN RAISE EXCEPTION 'hijacked as %', current_user; END $$;
                    CREATE OPERATOR pg_temp.= (FUNCTION = pg_temp.equal, LEFTARG = varchar, RIGHTARG = varchar)""",
    "types": "CREATE DOMAIN pg_temp.uuid AS text; CREATE DOMAIN pg_temp.float8 AS text CHECK (false)",
    "path": "SET search_path = pg_temp, public",
    "settings": "SET timezone = 'Asia/Kathmandu'; SET DateStyle = 'SQL, DMY'; SET session_replication_role = replica",
}


@pytest.mark.parametrize("name", HIJACKS)
def test_functions_are_not_hijacked(url: str, name: str) -> None:
    user = str(uuid4())
    connection = connect(read_database({"DATABASE_URL": as_role(url, "metrics_writer")}), 30)
    try:
        for statement in HIJACKS[name].split(";\n" if "FUNCTION" in HIJACKS[name] else ";"):
            with suppress(pg8000.native.DatabaseError):  # not allowed: that is as good
                connection.run(statement)
        connection.run(f"""SELECT register_users('[{{"user_id":"{user}","name":"Greg","email":null}}]')""")
        assert connection.run(ingesting(user)) == [[None]]
        ((answer,),) = connection.run(ingesting(user, 1e9))
        assert [outcome["outcome"] for outcome in answer] == ["value_out_of_range"]
    finally:
        connection.close()
    ((stored,),) = query(url, "SELECT count(*) FROM public.metrics WHERE user_id = :user_id", user_id=user)
    ((known,),) = query(url, "SELECT count(*) FROM public.users WHERE user_id = :user_id", user_id=user)
    assert (stored, known) == (1, 1)


def test_nobody_can_plant_an_operator_in_public(url: str) -> None:
    """Not in a database from before PostgreSQL 15 either, where everyone could create there."""
    query(url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    migrations.rollback(read_database({"DATABASE_URL": url}))
    migrations.migrate(read_database({"DATABASE_URL": url}))
    plant = "CREATE FUNCTION public.equal(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
    assert sqlstate(as_role(url, "metrics_writer"), plant) == "42501"


@pytest.fixture
def owner(postgres: Postgres) -> Iterator[tuple[str, str]]:
    """An empty database of a role that may create nothing but what is its own, as on a managed server."""
    name = f"owner_{uuid4().hex}"
    postgres.run(f"CREATE ROLE {name} LOGIN")
    postgres.run(f"CREATE DATABASE {name} OWNER {name}")
    yield name, as_role(postgres.url(name), name)
    postgres.run(f"DROP DATABASE {name}")
    postgres.run(f"DROP ROLE {name}")


def test_plain_owner_migrates_and_the_functions_run_as_it(owner: tuple[str, str], logins: None) -> None:
    name, url = owner
    database = read_database({"DATABASE_URL": url})
    migrations.migrate(database)
    assert query(
        url, "SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc WHERE prosecdef AND proname ~ '^(store_m|reg)'"
    ) == [[name]]
    user = str(uuid4())
    writer = as_role(url.replace(f"{name}@", "postgres@"), "metrics_writer")
    query(writer, f"""SELECT register_users('[{{"user_id":"{user}","name":"Greg","email":null}}]')""")
    assert query(writer, ingesting(user)) == [[None]]
    migrations.rollback(database)
    migrations.migrate(database)
    assert query(writer, ingesting(user)) != [[None]]  # no such user any more


@pytest.fixture
def bare() -> Iterator[Postgres]:
    """A cluster that has no roles yet."""
    server = Postgres()
    yield server
    server.close()


def test_roles_that_may_not_be_made_are_served_when_somebody_has_made_them(bare: Postgres) -> None:
    bare.run("DROP DATABASE migrated_template")
    bare.run("DROP DATABASE IF EXISTS metrics_db")
    for role in ("metrics_writer", "metrics_reader"):
        bare.run(f"DROP ROLE {role}")
    bare.run("CREATE ROLE plain LOGIN")
    bare.run("CREATE DATABASE managed OWNER plain")
    url = as_role(bare.url("managed"), "plain")
    migrations.migrate(read_database({"DATABASE_URL": url}))
    assert query(url, "SELECT FROM pg_roles WHERE rolname ~ '^metrics'") == []
    bare.run("CREATE ROLE metrics_writer LOGIN")
    migrations.migrate(read_database({"DATABASE_URL": url}))
    writer = as_role(bare.url("managed"), "metrics_writer")
    assert query(writer, NOTHING) == [[None]]
    assert sqlstate(writer, "SELECT * FROM metrics") == "42501"
    # Another database on the cluster depends on the roles: a rollback here, and migrating again, is no matter.
    bare.run("CREATE DATABASE other OWNER plain")
    other = read_database({"DATABASE_URL": as_role(bare.url("other"), "plain")})
    migrations.migrate(other)
    migrations.rollback(other)
    migrations.rollback(read_database({"DATABASE_URL": url}))
    migrations.migrate(read_database({"DATABASE_URL": url}))
    assert query(writer, NOTHING) == [[None]]


def test_what_security_md_says_sets_a_server_up(bare: Postgres) -> None:
    before, after = re.findall(r"```sql\n(.*?)```", (ROOT / "SECURITY.md").read_text(), re.DOTALL)
    for role in ("metrics_writer", "metrics_reader"):
        bare.run(f"DROP OWNED BY {role}", "migrated_template")
        bare.run(f"DROP ROLE {role}")
    for statement in filter(str.strip, before.split(";")):
        bare.run(statement)
    owner = as_role(bare.url("metrics_db"), "metrics_owner")
    migrations.migrate(read_database({"DATABASE_URL": owner}))
    query(owner, after)
    for role, timeout in (("metrics_writer", "1min"), ("metrics_reader", "5min")):
        login = as_role(bare.url("metrics_db"), role)
        assert query(login, "SHOW statement_timeout") == [[timeout]]
    assert query(as_role(bare.url("metrics_db"), "metrics_writer"), NOTHING) == [[None]]
    assert sqlstate(as_role(bare.url("metrics_db"), "metrics_writer"), "SELECT * FROM users") == "42501"
    assert query(as_role(bare.url("metrics_db"), "metrics_reader"), "SELECT * FROM users") == []
