"""WRITER_PASSWORD and READER_PASSWORD: `metrics-ingest migrate` lets metrics_writer and metrics_reader log in."""

import pytest
from click.testing import CliRunner

from metrics_ingest.admin.cli import main
from support.console import Console
from support.processes import Postgres

PASSWORD = "p'a\"ss \\ wörd"


@pytest.mark.parametrize("role", ["metrics_writer", "metrics_reader"])
def test_migrate_lets_a_role_log_in_with_the_password(console: Console, postgres: Postgres, role: str) -> None:
    postgres.run(f"ALTER ROLE {role} NOLOGIN PASSWORD NULL")
    allowed = f"SELECT rolcanlogin, rolpassword FROM pg_authid WHERE rolname = '{role}'"
    variable = f"{role.removeprefix('metrics_').upper()}_PASSWORD"
    try:
        assert role not in console.run("migrate").stdout
        assert console.sql(allowed) == [[False, None]]
        done = CliRunner().invoke(main, ["migrate"], env={"DATABASE_URL": console.url, variable: PASSWORD})
        assert (done.exit_code, f"{role} may log in" in done.stdout) == (0, True), done.output
        assert PASSWORD not in done.stdout
        ((login, verifier),) = console.sql(allowed)
        assert login
        assert verifier.startswith("SCRAM-SHA-256$")
    finally:
        postgres.run(f"ALTER ROLE {role} NOLOGIN PASSWORD NULL")


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
