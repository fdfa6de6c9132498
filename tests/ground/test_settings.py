"""DATABASE_URL and libpq's variables: read as libpq reads them, or refused without showing any part of a secret."""

import os
import subprocess
import sys
from urllib.parse import quote

import pytest

from metrics_ingest.settings import BadSetting, Database, read_database

SECRETS = (
    "S3cr@tw0rd/x#y",
    "a:b",
    "a/b",
    "a#b",
    "a?b",
    "a%b",
    "100%",
    "a b",
    "a\nb",
    "a+b",
    "é",
    "密码",
    "a@b@c",
    "12/x",
    "=&",
)


def read(url: str) -> Database:
    return read_database({"DATABASE_URL": url})


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "form", ["postgresql://u:{}@db.example:5433/d", "postgres://db.example:5433/d?user=u&password={}"]
)
def test_percent_encoded_password_is_what_it_was(secret: str, form: str) -> None:
    found = read(form.format(quote(secret, safe="")))
    assert (found.host, found.port, found.user, found.database) == ("db.example", 5433, "u", "d")
    assert found.password == secret


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "form", ["postgresql://u:{}@127.0.0.1/d", "postgresql://{}@127.0.0.1/d", "postgresql://h/d?user=u&password={}"]
)
def test_secret_that_is_not_encoded_is_read_as_it_is_or_refused_without_showing_it(secret: str, form: str) -> None:
    url = form.format(secret)
    try:
        found = read(url)
    except BadSetting as error:
        message = str(error)
        assert message.startswith("DATABASE_URL")
        parts = [secret, *secret.split("@"), "S3cr", "tw0rd"]
        assert not [part for part in parts if len(part) > 2 and part in message]
    else:
        assert found.host in ("127.0.0.1", "h")
        assert secret in (found.password, f"{found.user}:{found.password}", found.user)


def test_process_that_is_given_a_malformed_url_shows_nothing_of_it() -> None:
    """The password's half was logged as the host before."""
    url = "postgres://u:S3cr@tw0rd/x#y@127.0.0.1/db"
    code = "from metrics_ingest.settings import settings; settings()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "DATABASE_URL": url}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "percent-encode" in done.stderr
    assert not any(part in done.stderr + done.stdout for part in ("S3cr", "tw0rd", "#y"))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://u@/d?host=/cloudsql/p:r:i", ("/cloudsql/p:r:i", 5432, "u", "d")),
        ("postgresql://u@%2Fvar%2Frun/d", ("/var/run", 5432, "u", "d")),
        ("postgresql://u@[::1]:5433/d", ("::1", 5433, "u", "d")),
        ("postgresql://u@db", ("db", 5432, "u", "u")),
        ("postgres://u@db/?dbname=d&port=5434", ("db", 5434, "u", "d")),
        ("postgresql://u:@db/d", ("db", 5432, "u", "d")),
        ("postgresql://u@db/d?channel_binding=prefer&target_session_attrs=any", ("db", 5432, "u", "d")),
    ],
)
def test_url_is_read_as_libpq_reads_it(url: str, found: tuple[str, int, str, str]) -> None:
    database = read(url)
    assert (database.host, database.port, database.user, database.database) == found


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("postgresql://u@a,b/d", "a:5432,b:5432"),
        ("postgresql://u:p@a:1,b:2,[::1]:3/d?sslmode=require", "a:1,b:2,::1:3"),
        ("postgresql://u@a:1,b/d", "a:1,b:5432"),
        ("postgresql://u@/d?host=a,b&port=6432", "a:6432,b:6432"),
        ("postgresql://u@/d?host=a,/run/postgresql&port=1,2", "a:1,/run/postgresql:2"),
    ],
)
def test_several_hosts_are_read_as_libpq_reads_them(url: str, places: str) -> None:
    assert read(url).address == f"{places}/d"


def test_tls_is_required_unless_all_hosts_are_this_machine() -> None:
    assert read("postgresql://u@localhost,127.0.0.1/d").sslmode == "prefer"
    assert read("postgresql://u@localhost,db/d").sslmode == "require"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u@a,/d", "several hosts"),
        ("postgresql://u@/d?host=a,b&port=1,2,3", "3 ports for 2 hosts"),
        ("postgresql://u@a:1,b:x/d", "port"),
        ("postgresql://u@a/d?options=-csearch_path%3Dx", "options is not supported"),
        ("postgresql://u@a/d?channel_binding=require", "channel_binding is not supported"),
        ("postgresql://u@a/d?target_session_attrs=read-write", "target_session_attrs is not supported"),
        ("postgresql://u@a/d?sslcert=/x", "sslcert is not supported"),
        ("postgresql://u@a/d?hunter2=x", "a parameter is not supported"),
        ("postgresql://u@a:five/d", "port"),
        ("postgresql://a/d", "names no user"),
        ("postgresql://u%FF@a/d", "UTF-8"),
        ("postgresql://u%00@a/d", "NUL"),
        ("mysql://u@a/d", "postgresql://"),
    ],
)
def test_url_that_cannot_be_honoured_is_refused_by_name(url: str, named: str) -> None:
    with pytest.raises(BadSetting, match=r"^DATABASE_URL") as caught:
        read(url)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "variable",
    ["PGOPTIONS", "PGCHANNELBINDING", "PGTARGETSESSIONATTRS", "PGSERVICE", "PGHOSTADDR", "PGCONNECT_TIMEOUT"],
)
def test_variable_of_libpq_that_cannot_be_honoured_is_refused_by_name(variable: str) -> None:
    environ = {"PGHOST": "db", "PGUSER": "u"}
    assert read_database(environ).host == "db"
    with pytest.raises(BadSetting, match=f"^{variable} is not supported"):
        read_database({**environ, variable: "hunter2"})
