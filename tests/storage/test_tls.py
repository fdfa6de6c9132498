"""TLS to the database, by sslmode, against a real server with a made-up CA; and where the password must not show."""

import os
import shutil
import socket
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode
from uuid import UUID

import pg8000.exceptions
import pg8000.native
import pytest
import requests
from click.testing import CliRunner

from metrics_ingest.admin import cli
from metrics_ingest.settings import BadSetting, Settings, read_database
from metrics_ingest.storage import migrations
from metrics_ingest.storage.driver import DatabaseSocket, connect
from support.emulator import failed_start
from support.processes import Server, eventually, free_port, query

PASSWORD = "correct horse/battery@staple"
ALICE = f"alice:{quote(PASSWORD, safe='')}"


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and a server's certificate for localhost that it signed."""

    root: Path
    certificate: Path
    key: Path


def authority(directory: Path) -> Authority:
    """Make one up."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make up a CA")
    directory.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=made-up CA", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    (directory / "names").write_text("subjectAltName=DNS:localhost")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
    return Authority(directory / "ca.pem", directory / "server.pem", directory / "server.key")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "theirs")


@dataclass(frozen=True)
class TlsPostgres:
    """A server that lets alice in by TLS only, and bob also without."""

    port: int
    superuser: str

    def url(self, host: str = "localhost", user: str = "alice", password: str = PASSWORD, **options: str) -> str:
        login = f"{user}:{quote(password, safe='')}"
        return f"postgresql://{login}@{host}:{self.port}/metrics_db?{urlencode(options)}"

    def connect(self, **options: str) -> pg8000.native.Connection:
        return connect(read_database({"DATABASE_URL": self.url(**options)}), 10)


@pytest.fixture(scope="module")
def server(ours: Authority) -> Iterator[TlsPostgres]:
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")), Path(shutil.which("postgres") or "/none")]
    binaries = next((path.resolve().parent for path in found if path.exists()), None)
    if binaries is None:
        pytest.skip("needs an installed PostgreSQL: the embedded one is built without TLS")
    user = "postgres" if os.getuid() == 0 else None  # it does not run as root

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", f"{directory}/data", *arguments]
        subprocess.run(command, cwd=directory, user=user, check=True, capture_output=True)

    with tempfile.TemporaryDirectory() as name:
        directory, port = Path(name), free_port()
        for source, target in ((ours.certificate, "server.crt"), (ours.key, "server.key")):
            shutil.copy(source, directory / target)
            (directory / target).chmod(0o600)
        if user:
            for path in (directory, directory / "server.crt", directory / "server.key"):
                shutil.chown(path, user, user)
        run("initdb", "-U", "postgres", "-A", "trust")
        (directory / "data/pg_hba.conf").write_text(
            "local all all trust\nhostssl all all all scram-sha-256\nhostnossl all bob all scram-sha-256\n"
        )
        (directory / "data/postgresql.auto.conf").write_text(
            f"listen_addresses = 'localhost'\nport = {port}\nunix_socket_directories = '{directory}'\nfsync = off\n"
            f"ssl = on\nssl_cert_file = '{directory}/server.crt'\nssl_key_file = '{directory}/server.key'\n"
        )
        run("pg_ctl", "-w", "-l", f"{directory}/log", "start")
        try:
            superuser = f"postgresql://postgres@/postgres?host={directory}&port={port}"
            for role in ("alice", "bob"):
                query(superuser, f"CREATE ROLE {role} LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
            query(superuser, "CREATE DATABASE metrics_db OWNER alice")
            yield TlsPostgres(port, superuser)
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


WORKS = [
    {},
    {"sslmode": "prefer"},
    {"sslmode": "require"},
    {"sslmode": "require", "host": "127.0.0.1"},
    {"sslmode": "require", "sslrootcert": "ours"},
    {"sslmode": "verify-ca", "sslrootcert": "ours"},
    {"sslmode": "verify-ca", "sslrootcert": "ours", "host": "127.0.0.1"},
    {"sslmode": "verify-full", "sslrootcert": "ours"},
]
FAILS = [
    ({"sslmode": "disable"}, "no encryption"),
    ({"sslmode": "require", "sslrootcert": "theirs"}, "CERTIFICATE_VERIFY_FAILED"),
    ({"sslmode": "verify-ca", "sslrootcert": "theirs"}, "CERTIFICATE_VERIFY_FAILED"),
    ({"sslmode": "verify-ca"}, "CERTIFICATE_VERIFY_FAILED"),
    ({"sslmode": "verify-full", "sslrootcert": "theirs"}, "CERTIFICATE_VERIFY_FAILED"),
    ({"sslmode": "verify-full", "sslrootcert": "ours", "host": "127.0.0.1"}, "IP address mismatch"),
    ({"sslmode": "verify-full"}, "CERTIFICATE_VERIFY_FAILED"),
    ({"sslrootcert": "system"}, "CERTIFICATE_VERIFY_FAILED"),
]


@pytest.fixture
def roots(ours: Authority, theirs: Authority) -> Callable[[dict[str, str]], dict[str, str]]:
    """Put the files where the options name an authority."""
    files = {"ours": str(ours.root), "theirs": str(theirs.root)}
    return lambda options: {name: files.get(value, value) for name, value in options.items()}


Roots = Callable[[dict[str, str]], dict[str, str]]


@pytest.mark.parametrize("options", WORKS, ids=str)
def test_mode_connects_by_tls_with_scram(server: TlsPostgres, roots: Roots, options: dict[str, str]) -> None:
    with closing(server.connect(**roots(options))) as connection:
        assert connection.run("SELECT ssl, version >= 'TLSv1.2' FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [
            [True, True]
        ]


def test_large_requests_do_not_wait_for_an_acknowledgement(server: TlsPostgres) -> None:
    """A batch of 500 metrics took 51 ms over TLS without TCP_NODELAY, and takes 8 ms with it."""
    with closing(server.connect(sslmode="require")) as connection:
        assert DatabaseSocket(connection).socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("options", "reason"), FAILS, ids=str)
def test_mode_refuses(server: TlsPostgres, roots: Roots, options: dict[str, str], reason: str) -> None:
    with pytest.raises((pg8000.exceptions.Error, OSError)) as caught:
        server.connect(**roots(options))
    assert reason in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.fixture
def plain(server: TlsPostgres) -> Iterator[TlsPostgres]:
    """The same server, without TLS meanwhile."""
    for mode in ("off", "on"):
        query(server.superuser, f"ALTER SYSTEM SET ssl = {mode}")
        query(server.superuser, "SELECT pg_reload_conf()")
        eventually(lambda mode=mode: query(server.superuser, "SHOW ssl") == [[mode]])  # type: ignore[misc]
        if mode == "off":
            yield server


def test_server_without_tls_is_used_only_where_that_is_allowed(plain: TlsPostgres, ours: Authority) -> None:
    for allowed in ("disable", "prefer"):
        plain.connect(user="bob", sslmode=allowed).close()
    for strict in ("require", "verify-ca", "verify-full"):
        with pytest.raises(pg8000.exceptions.InterfaceError, match="refuses SSL"):
            plain.connect(user="bob", sslmode=strict, sslrootcert=str(ours.root))


@pytest.mark.parametrize(
    ("host", "sslmode"),
    [
        ("localhost", "prefer"),
        ("127.0.0.1", "prefer"),
        ("[::1]", "prefer"),
        ("", "prefer"),
        ("db", "require"),
        ("10.0.0.7", "require"),
        ("db.example.com", "require"),
        ("localhost.example.com", "require"),
        ("127.0.0.1.example.com", "require"),
    ],
)
def test_other_hosts_need_tls_unless_told(host: str, sslmode: str) -> None:
    assert read_database({"DATABASE_URL": f"postgresql://u@{host}/d"}).sslmode == sslmode
    if "[" not in host and host:
        assert read_database({"PGHOST": host, "PGUSER": "u"}).sslmode == sslmode


def test_functions_write_large_batches_over_tls(
    server: TlsPostgres, ours: Authority, serve: Callable[..., Server]
) -> None:
    """Two megabytes at once, more than any buffer holds."""
    url = server.url(sslmode="verify-full", sslrootcert=str(ours.root))
    migrations.migrate(read_database({"DATABASE_URL": url}))
    user = requests.post(serve("users", url).url, json={"name": "Greg"}, timeout=10).json()["user_id"]
    many = [
        {
            "user_id": user,
            "metric_type": "talked_time",
            "value": 12.3456789,
            "timestamp": f"2024-08-08T12:34:56.{number:06}Z",
            "session_id": user,
            "metric_id": str(UUID(int=number + 1)),
        }
        for number in range(10_000)
    ]
    batch = serve("ingest_batch", url)
    for expected in ("stored", "duplicates"):
        answer = requests.post(batch.url, json=many, timeout=60)
        assert answer.json()[expected] == len(many), answer.text[:300]


@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
def test_unusable_root_certificate_stops_the_start_in_one_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "root.crt"
    if content is not None:
        file.write_text(content)
    for sslmode in ("require", "verify-ca", "verify-full"):
        url = f"postgresql://{ALICE}@db/d?sslmode={sslmode}&sslrootcert={file}"
        with pytest.raises(BadSetting, match=rf"^DATABASE_URL: sslrootcert {file} cannot be used: ") as caught:
            read_database({"DATABASE_URL": url})
        assert "\n" not in str(caught.value)
        result = CliRunner().invoke(cli.main, ["migrate"], env={"DATABASE_URL": url})
        assert result.exit_code == 2
        assert PASSWORD not in result.output


def test_system_roots_need_the_full_check() -> None:
    assert read_database({"DATABASE_URL": "postgresql://u@db/d?sslrootcert=system"}).sslmode == "verify-full"
    with pytest.raises(BadSetting, match="verify-full"):
        read_database({"DATABASE_URL": "postgresql://u@db/d?sslrootcert=system&sslmode=require"})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:{}@db/d",
        "postgresql://u:{}@db:x/d",
        "postgresql://u:{}@[::1/d",
        "postgresql://u:{}\u2100@db/d",
        "postgresql://u:{}@db/d?sslmode=no",
        "postgresql://:{}@db/d",
        "mysql://u:{}@db/d",
        "postgresql://db/d?user=u&password={}",
        "postgresql://db/d?user=u&password={}&port=x",
        "u:{}@db",
    ],
)
def test_password_is_in_no_error_and_no_repr(url: str) -> None:
    environment = {"DATABASE_URL": url.format("hunter2"), "ALLOW_ANONYMOUS": "true"}
    try:
        told = repr(Settings.from_environment(environment))
    except BadSetting as error:
        told = "".join(traceback.format_exception(error))
    assert "hunter2" not in told.replace(url.format("hunter2"), "")


def test_password_is_in_no_log(server: TlsPostgres, serve: Callable[..., Server]) -> None:
    """Of functions and commands that the server does not let in, or that cannot reach or do not believe it."""
    wrong, told = "hunter2/+wrong", []
    for url in (
        server.url(password=wrong),
        server.url(password=wrong, sslmode="verify-full"),
        f"postgresql://alice:{quote(wrong, safe='')}@127.0.0.1:{free_port()}/d",
    ):
        command = CliRunner().invoke(cli.main, ["migrate"], env={"DATABASE_URL": url})
        assert command.exit_code == 3
        assert command.output.startswith("Error: cannot migrate: ")
        told.append(command.output)
    function = serve("users", server.url(password=wrong), WRITE_TIMEOUT_S="0.5", LOG_LEVEL="DEBUG")
    answer = requests.post(function.url, json={"name": "Greg"}, timeout=10)
    assert answer.status_code == 503
    told += [answer.text, function.log, failed_start(DATABASE_URL=server.url(password=wrong))]
    assert wrong not in "".join(told)
    assert quote(wrong, safe="") not in "".join(told)
