"""`make run`: all functions on one port, loaded by functions-framework from the same files as in the cloud."""

import ipaddress
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from functions_framework import create_app
from pg8000.exceptions import Error
from starlette.types import ASGIApp, Receive, Scope, Send

from metrics_ingest.admin.database import RUNNING, failure, running_emulator
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http.functions import FUNCTIONS, owner
from metrics_ingest.http.replies import problem
from metrics_ingest.local.front_page import front_page
from metrics_ingest.local.refreshing import Refresher
from metrics_ingest.server.handler import without_middleware
from metrics_ingest.settings import BadSetting, Database, Settings
from metrics_ingest.storage import migrations

OTHER_HOST = "the emulator is called localhost; to give it another name, set HOST"
ROOT = Path(__file__).parents[3]
NO_READ_KEYS = (
    "the dashboard is closed, because API_KEYS is set and READ_KEYS is not; set READ_KEYS (`metrics-ingest key new`"
    " prints an entry), or ALLOW_ANONYMOUS=true to let anybody read"
)
READY_MESSAGE = """\
metrics-ingest is ready:
  start here {base}/
  dashboard  {base}/dashboard/{locked}
  API page   {base}/docs
  metrics of the functions themselves, for Prometheus: {base}/metrics
{routes}

try it:
  curl {base}/users/ -H 'Content-Type: application/json' \\
    -d '{{"user_id":"b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d","name":"Greg","email":"greg@gmail.com"}}'
  curl {base}/ingest/ -H 'Content-Type: application/json' \\
    -d '{{"user_id":"b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d","metric_type":"talked_time","value":12.34,\
"timestamp":"2024-08-08T12:34:56Z","metric_id":"6f1c2b7e-3a52-4c0e-9d3b-0a4f5b1c2d3e"}}'
see what is stored, and manage it:
  echo 'SELECT * FROM metrics' | {psql}
  {command} --help

stop with Ctrl-C
"""


class Dispatcher:
    """Passes each request to the function that owns its path. The path is not changed."""

    def __init__(self, functions: dict[str, ASGIApp], front: ASGIApp, stored: Callable[[], None], host: str) -> None:
        """`front` serves all other paths; `stored` is called after each request that may have stored metrics.

        `host` is the address that the emulator listens on, or a name of it.
        """
        self._functions = functions
        self._front = front
        self._stored = stored
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (the ASGI interface)."""
        if not self._is_own_host(scope):
            await problem(RequestRefused(Fault("forbidden_origin", OTHER_HOST)))(scope, receive, send)
            return
        function = owner(scope["path"])
        if function is None:
            await self._front(scope, receive, send)
            return
        await self._functions[function.name](scope, receive, send)
        if scope["method"] == "POST" and function.name.startswith("ingest"):
            self._stored()

    def _is_own_host(self, scope: Scope) -> bool:
        """Return whether the Host is an address, a name of this machine for itself, or HOST.

        A page whose name its owner makes resolve to 127.0.0.1 (DNS rebinding) has the same origin as the emulator for
        the browser, but sends its own name as Host. A client that sends none is no browser.
        """
        authority = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        host = re.sub(r":\d*$", "", authority).strip("[]").removesuffix(".")
        if host in ("", "localhost", self._host.lower()) or host.endswith(".localhost"):
            return True
        try:
            return bool(ipaddress.ip_address(host))
        except ValueError:
            return False


async def _dashboard_without_keys(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve in place of a dashboard that nobody may read."""
    fault = Fault("unauthorized", NO_READ_KEYS)
    await problem(RequestRefused(fault, headers={"WWW-Authenticate": "Bearer"}))(scope, receive, send)


def load(directory: Path, base: str, stored: Callable[[], None], host: str) -> Dispatcher:
    """Load each function from its file in `directory` (<name>/main.py), for an emulator at `base`."""
    names = [function.name for function in FUNCTIONS if function.name != "dashboard" or _may_read()]
    apps = {name: create_app(name, str(directory / name / "main.py"), "http") for name in names}
    functions = {name: without_middleware(app) for name, app in apps.items()}
    front = front_page({name: f"{base}/{name}/health" for name in names}, with_metrics="dashboard" in names)
    return Dispatcher({"dashboard": _dashboard_without_keys, **functions}, front, stored, host)


def _may_read() -> bool:
    return bool(os.environ.get("READ_KEYS", "").strip()) or _anonymous()


def _anonymous() -> bool:
    return os.environ["ALLOW_ANONYMOUS"].strip().lower() == "true"


def main() -> None:
    """Serve until SIGINT or SIGTERM. Raise SystemExit with one line when a setting cannot be used."""
    # Before uvicorn installs its own handlers, SIGTERM must exit through the `finally` that stops the database.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Whoever sets keys for sending does not expect that anybody may read, so then the dashboard needs READ_KEYS.
    os.environ.setdefault("ALLOW_ANONYMOUS", "false" if os.environ.get("API_KEYS", "").strip() else "true")
    os.environ.setdefault("PROMETHEUS", "true")
    host = os.environ.get("HOST") or "127.0.0.1"
    listener = _listen(host, os.environ.get("PORT") or "8000")
    base = _address(host, listener.getsockname()[1])
    with (
        suppress(KeyboardInterrupt),  # which uvicorn raises again, once it has stopped
        _database(base) as (owner_database, psql),
        Refresher(owner_database).running() as refresher,
    ):
        refresher.notice()  # of metrics that were stored while no emulator ran
        functions = load(ROOT / "functions", base, refresher.notice, host)
        _announce(base, psql)
        config = uvicorn.Config(functions, log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def _address(host: str, port: int) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _listen(host: str, port: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except (ValueError, OverflowError):
        raise SystemExit(f"metrics-ingest: PORT must be a number from 0 to 65535, not {port!r}") from None
    except OSError as error:
        _refuse_second()
        raise SystemExit(
            f"metrics-ingest: cannot listen on {host}:{port} ({error.strerror}); try another port: make run PORT=8001"
        ) from None


def _refuse_second() -> None:
    """Raise SystemExit if another `make run` uses the embedded database that this one would use."""
    if not _is_configured() and (other := running_emulator()) and other["directory"] == Path.cwd():
        raise SystemExit(f"metrics-ingest: `make run` is running already: {other['url']}/ (process {other['process']})")


def _is_configured() -> bool:
    return bool(os.environ.get("DATABASE_URL") or os.environ.get("PGHOST"))


@contextmanager
def _database(base: str) -> Iterator[tuple[Database, str]]:
    """Migrate the configured database, or an embedded one; yield it as its owner, and a psql command for it.

    The functions use a configured database as it is, and the embedded one as metrics_writer and metrics_reader.
    """
    if _is_configured():
        yield _migrate(), 'psql "$DATABASE_URL"'
        return
    from metrics_ingest.local import postgres

    try:
        with postgres.run_server() as url:
            os.environ["DATABASE_URL"] = url
            owner_database = _migrate()
            for variable, role in (("DATABASE_URL", "metrics_writer"), ("READ_DATABASE_URL", "metrics_reader")):
                os.environ[variable] = postgres.url_as(url, role)
            RUNNING.write_text(json.dumps({"process": os.getpid(), "url": base, "database_url": url}))
            try:
                yield owner_database, "make psql"
            finally:
                RUNNING.unlink(missing_ok=True)
    except postgres.AlreadyRunning as error:
        _refuse_second()
        raise SystemExit(f"metrics-ingest: {error}; is `make run` running already?") from None


def _migrate() -> Database:
    try:
        database = Settings.from_environment(os.environ).database
        migrations.migrate(database)
        return database
    except BadSetting as error:
        raise SystemExit(f"metrics-ingest: {error}") from None
    except migrations.UnknownMigrations as error:
        raise SystemExit(f"metrics-ingest: DATABASE_URL: {error}") from None
    except (Error, OSError) as error:
        reason = failure(error, f"cannot use the database at {database.address}").message
        raise SystemExit(f"metrics-ingest: DATABASE_URL: {reason}") from None


def _announce(base: str, psql: str) -> None:
    routes = "\n".join(
        f"  {method} {base}{path}"
        for function in FUNCTIONS
        for method in function.methods
        if method != "GET"
        for path in function.paths
    )
    command = Path(sys.executable).with_name("metrics-ingest")
    if command.is_relative_to(Path.cwd()):
        command = command.relative_to(Path.cwd())
    locked = "" if _may_read() else "  (closed: set READ_KEYS or ALLOW_ANONYMOUS)"
    sys.stdout.write(READY_MESSAGE.format(routes=routes, base=base, psql=psql, command=command, locked=locked))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
