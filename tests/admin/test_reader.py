"""READER_PASSWORD: `metrics-ingest migrate` lets metrics_reader log in."""

from click.testing import CliRunner

from metrics_ingest.admin.cli import main
from support.console import Console
from support.processes import Postgres

PASSWORD = "p'a\"ss \\ wörd"


def test_migrate_lets_metrics_reader_log_in_with_the_password(console: Console, postgres: Postgres) -> None:
    postgres.run("ALTER ROLE metrics_reader NOLOGIN PASSWORD NULL")
    allowed = "SELECT rolcanlogin, rolpassword FROM pg_authid WHERE rolname = 'metrics_reader'"
    try:
        assert "metrics_reader" not in console.run("migrate").stdout
        assert console.sql(allowed) == [[False, None]]
        done = CliRunner().invoke(main, ["migrate"], env={"DATABASE_URL": console.url, "READER_PASSWORD": PASSWORD})
        assert (done.exit_code, "metrics_reader may log in" in done.stdout) == (0, True), done.output
        assert PASSWORD not in done.stdout
        ((login, verifier),) = console.sql(allowed)
        assert login
        assert verifier.startswith("SCRAM-SHA-256$")
    finally:
        postgres.run("ALTER ROLE metrics_reader NOLOGIN PASSWORD NULL")


def test_role_that_may_not_create_roles_is_told(console: Console, postgres: Postgres) -> None:
    postgres.run("CREATE ROLE plain_owner LOGIN")
    try:
        url = console.url.replace("postgres@/", "plain_owner@/")
        ((name,),) = console.sql("SELECT current_database()")
        postgres.run(f"GRANT ALL ON DATABASE {name} TO plain_owner")
        done = CliRunner().invoke(main, ["migrate"], env={"DATABASE_URL": url, "READER_PASSWORD": PASSWORD})
        assert done.exit_code == 1
        assert PASSWORD not in done.output
    finally:
        postgres.run(f"REVOKE ALL ON DATABASE {name} FROM plain_owner")
        postgres.run("DROP ROLE plain_owner")
