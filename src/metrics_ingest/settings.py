"""The settings, read once from the environment into a frozen object."""

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import unquote

SSL_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
# postgresql://user:password@host:port/database?query, in which "@", "/", "?" and "#" only separate the parts
URL = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\],]*)(?::(?P<port>[^:@/?#,]*))?"
    r"(?P<others>(?:,(?:\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\],]*)(?::[^:@/?#,]*)?)*)"
    r"(?:/(?P<database>[^@/?#]*))?(?:\?(?P<query>(?:[^@?#=&]+=[^@?#=&]*(?:&|$))*))?"
)
OPTIONS = ("host", "port", "user", "password", "database", "sslmode", "sslrootcert")
PARAMETERS = {"dbname": "database"}  # libpq's name in a URL
# Other parameters of libpq, each with the value that asks for what is done anyway (pg8000 binds the channel where the
# server offers it). Any other value is refused by name, because it would change where or how to connect.
UNSUPPORTED = {
    "channel_binding": "prefer", "connect_timeout": "", "gssencmode": "", "hostaddr": "", "load_balance_hosts": "",
    "options": "", "passfile": "", "require_auth": "", "requirepeer": "", "service": "", "sslcert": "", "sslcrl": "",
    "sslkey": "", "sslnegotiation": "", "target_session_attrs": "any",
}  # fmt: skip
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
SERVERS = ("tuned", "stock")


class BadSetting(ValueError):
    """An environment variable has a value that cannot be used. The message begins with its name and holds no secret."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where PostgreSQL is and how to log in. A `host` that begins with `/` is the directory of a Unix socket."""

    host: str
    port: int
    user: str
    database: str
    password: str | None = field(default=None, repr=False)
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    cloud_sql_instance: str | None = None
    others: tuple[tuple[str, int], ...] = ()  # hosts and ports to try after this one

    @property
    def address(self) -> str:
        """Return hosts, ports and name, for messages."""
        places = ((self.host, self.port), *self.others)
        return f"{','.join(f'{host}:{port}' for host, port in places)}/{self.database}"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The name of a caller and the SHA-256 of its key (32 bytes)."""

    name: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the functions. Sizes are in bytes, times in seconds. docs/configuration.md explains each."""

    database: Database
    api_keys: tuple[ApiKey, ...]
    max_body_bytes: int
    max_batch: int
    max_future_skew_s: float
    max_past_s: float  # 0: no limit
    write_lanes: int
    write_queue: int
    write_timeout_s: float
    cors_origins: tuple[str, ...]
    keep_rejected: bool
    rejected_per_s: float  # how many a process keeps in the long run,
    rejected_burst: float  # and at once
    log_level: str
    server: str  # one of SERVERS
    prometheus: bool  # for telemetry.py

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read all settings. Raise BadSetting for the first variable that cannot be used."""
        settings = cls(
            database=read_database(environ),
            api_keys=_api_keys(environ),
            max_body_bytes=int(_number(environ, "MAX_BODY_BYTES", 10_485_760, least=1)),
            max_batch=int(_number(environ, "MAX_BATCH", 10_000, least=1)),
            max_future_skew_s=_number(environ, "MAX_FUTURE_SKEW_S", 86_400, least=0, most=3_153_600_000, whole=False),
            max_past_s=_number(environ, "MAX_PAST_S", 0, least=0, most=3_153_600_000, whole=False),
            write_lanes=int(_number(environ, "WRITE_LANES", 2, least=1, most=100)),
            write_queue=int(_number(environ, "WRITE_QUEUE", 20_000, least=1)),
            write_timeout_s=_number(environ, "WRITE_TIMEOUT_S", 10, least=0.1, most=3_600, whole=False),
            cors_origins=_origins(environ),
            keep_rejected=read_flag(environ, "KEEP_REJECTED", default=True),
            rejected_per_s=_number(environ, "REJECTED_PER_S", 20, least=0, most=100_000, whole=False),
            rejected_burst=_number(environ, "REJECTED_BURST", 100, least=0, most=1_000_000),
            log_level=_choice(environ, "LOG_LEVEL", "INFO", LOG_LEVELS),
            server=_choice(environ, "SERVER", "tuned", SERVERS),
            prometheus=read_flag(environ, "PROMETHEUS", default=False),
        )
        if not read_flag(environ, "ALLOW_ANONYMOUS", default=False) and not settings.api_keys:
            raise BadSetting(
                "API_KEYS is not set; set it, or ALLOW_ANONYMOUS=true where a gateway or platform authenticates"
            )
        return settings


@cache
def settings() -> Settings:
    """Return the settings of this process. Raise SystemExit, with a message of one line, if a variable is wrong."""
    try:
        return Settings.from_environment(os.environ)
    except BadSetting as error:
        raise SystemExit(f"metrics-ingest: {error}") from None


def read_database(environ: Mapping[str, str]) -> Database:
    """Read DATABASE_URL or, where it is not set, PGHOST and libpq's other variables. Raise BadSetting."""
    if url := environ.get("DATABASE_URL", ""):
        source, options = "DATABASE_URL", _url_options(url)
    elif environ.get("PGHOST"):
        source = "PGHOST"
        options = {name: environ[f"PG{name.upper()}"] for name in OPTIONS if environ.get(f"PG{name.upper()}")}
        for name, harmless in UNSUPPORTED.items():
            variable = "PGCONNECT_TIMEOUT" if name == "connect_timeout" else f"PG{name.replace('_', '').upper()}"
            if environ.get(variable, harmless) not in ("", harmless):
                raise BadSetting(f"{variable} is not supported; unset it")
    else:
        raise BadSetting("DATABASE_URL is not set, nor PGHOST; set it to the PostgreSQL to write to")
    if any("\0" in value for value in options.values()):
        raise BadSetting(f"{source} has a NUL character")
    (host, port), *others = _places(options, source, source if url else "PGPORT")
    user = options.get("user")
    if not user:
        raise BadSetting(f"{source if url else 'PGUSER'} names no user")
    hosts = [host, *(other for other, _ in others)]
    sslmode, sslrootcert = _tls(options, hosts, source if url else "PGSSLMODE")
    instance = environ.get("CLOUD_SQL_INSTANCE") or None
    database = options.get("database") or user
    password = options.get("password")
    return Database(host, port, user, database, password, sslmode, sslrootcert, instance, tuple(others))


def _places(options: Mapping[str, str], source: str, port_source: str) -> list[tuple[str, int]]:
    """Return the hosts, in the order in which they are tried, with their ports: one for all, or one for each.

    Raise BadSetting.
    """
    hosts = [host.removeprefix("[").removesuffix("]") for host in options.get("host", "").split(",")]
    ports = [port or "5432" for port in options.get("port", "").split(",")]
    if len(hosts) > 1 and not all(hosts):
        raise BadSetting(f"{source} names several hosts, and one of them is empty")
    if len(ports) not in (1, len(hosts)):
        raise BadSetting(f"{port_source} has {len(ports)} ports for {len(hosts)} hosts")
    if not all(port.isascii() and port.isdigit() and 0 < int(port) < 65536 for port in ports):
        raise BadSetting(f"{port_source} has a port that is not a number from 1 to 65535")
    numbers = [int(port) for port in ports] * (len(hosts) if len(ports) == 1 else 1)
    return [(host or "localhost", number) for host, number in zip(hosts, numbers, strict=True)]


def _url_options(url: str) -> dict[str, str]:
    """Split DATABASE_URL into its parts, and refuse what could be read in two ways. No message quotes any of it.

    Raise BadSetting.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise BadSetting("DATABASE_URL must begin with postgresql://")
    match = URL.fullmatch(url)
    if match is None or re.search(r"%(?![0-9A-Fa-f]{2})|[\s\x00-\x1f\x7f]", url):
        raise BadSetting(
            "DATABASE_URL is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE; "
            "percent-encode special characters (such as @ as %40, / as %2F, # as %23, ? as %3F, % as %25)"
        )
    parts = match.groupdict()
    query, others = parts.pop("query"), parts.pop("others")
    if others:
        more = [re.fullmatch(r"(\[.*\]|[^:]*)(?::(.*))?", other) for other in others[1:].split(",")]
        parts["host"] = ",".join([parts["host"] or "", *(place[1] for place in more if place)])
        parts["port"] = ",".join([parts["port"] or "", *(place[2] or "" for place in more if place)])
    found = [(name, value) for name, value in parts.items() if value]
    pairs = [pair.partition("=") for pair in (query or "").split("&") if pair]
    found += [(PARAMETERS.get(name, name), value) for name, _, value in pairs]
    options: dict[str, str] = {}
    for name, value in found:
        if name in UNSUPPORTED and value in ("", UNSUPPORTED[name]):
            continue
        if name not in OPTIONS:
            quoted = name if name in UNSUPPORTED else "a parameter"  # others may be part of a password
            raise BadSetting(
                f"DATABASE_URL: {quoted} is not supported; remove it. Supported: {', '.join(OPTIONS)}, dbname"
            )
        try:
            # Not parse_qsl, because it reads a plus sign as a space; libpq does not.
            options[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise BadSetting("DATABASE_URL has percent-encoded bytes that are not UTF-8") from None
    return options


def _tls(options: Mapping[str, str], hosts: list[str], source: str) -> tuple[str, str | None]:
    """Read sslmode and sslrootcert as libpq does, but require TLS by default unless all hosts are this machine."""
    sslrootcert = options.get("sslrootcert") or None
    default = "verify-full" if sslrootcert == "system" else "prefer" if all(map(_is_local, hosts)) else "require"
    sslmode = options.get("sslmode") or default
    if sslmode not in SSL_MODES:
        raise BadSetting(f"{source}: sslmode must be one of {', '.join(SSL_MODES)}")
    if sslrootcert == "system":
        if sslmode != "verify-full":
            raise BadSetting(
                f"{source}: sslrootcert=system needs sslmode=verify-full, because anyone can get such a certificate"
            )
    elif sslrootcert:
        try:
            ssl.create_default_context(cafile=sslrootcert)
        except (OSError, ssl.SSLError) as error:
            reason = (
                error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "no PEM certificate in it"
            )
            raise BadSetting(f"{source}: sslrootcert {sslrootcert} cannot be used: {reason}") from None
    return sslmode, sslrootcert


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _api_keys(environ: Mapping[str, str]) -> tuple[ApiKey, ...]:
    entries = [entry.strip() for entry in environ.get("API_KEYS", "").split(",") if entry.strip()]
    keys = []
    for entry in entries:
        name, _, digest = entry.partition(":")
        if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise BadSetting("API_KEYS must be a comma-separated list of name:sha256-of-key (64 hexadecimal digits)")
        keys.append(ApiKey(name, bytes.fromhex(digest)))
    return tuple(keys)


def _origins(environ: Mapping[str, str]) -> tuple[str, ...]:
    origins = tuple(filter(None, (origin.strip().lower() for origin in environ.get("CORS_ORIGINS", "").split(","))))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\*\.)?[^\s/?#@*]+?(:\*)?", origin, re.ASCII):
            raise BadSetting(
                "CORS_ORIGINS must be * or origins like https://app.example.com, https://*.example.com or"
                f" http://localhost:*, not {origin[:100]!r}"
            )
    return origins


def _number(
    environ: Mapping[str, str], name: str, default: float, *, least: float, most: float = 2**31, whole: bool = True
) -> float:
    text = environ.get(name, "").strip()
    try:
        value = (int(text) if whole else float(text)) if text else default
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise BadSetting(
            f"{name} must be a {'whole ' if whole else ''}number from {least:g} to {most:g}, not {text[:40]!r}"
        )
    return value


def _choice(environ: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    """Return one of `choices`, whichever case it is written in."""
    text = environ.get(name, "").strip() or default
    for choice in choices:
        if choice.lower() == text.lower():
            return choice
    raise BadSetting(f"{name} must be one of {', '.join(choices)}, not {text[:40]!r}")


def read_flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a setting that is true or false. Raise BadSetting."""
    return _choice(environ, name, str(default).lower(), ("true", "false")) == "true"
