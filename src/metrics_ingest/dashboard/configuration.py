"""The settings of the dashboard: who may read, and which database is read."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from metrics_ingest.settings import LOG_LEVELS, SERVERS, ApiKey, BadSetting, Database, read_database

KEY_FORM = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the dashboard runs with. Without keys anyone may read."""

    database: Database
    read_keys: tuple[ApiKey, ...]
    log_level: str
    server: str  # one of SERVERS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Configuration":
        """Raise BadSetting for the first variable that cannot be used."""
        log_level = environ.get("LOG_LEVEL", "").strip().upper() or "INFO"
        if log_level not in LOG_LEVELS:
            raise BadSetting(f"LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}, not {log_level[:40]!r}")
        server = environ.get("SERVER", "").strip().lower() or "tuned"
        if server not in SERVERS:
            raise BadSetting(f"SERVER must be one of {', '.join(SERVERS)}, not {server[:40]!r}")
        return cls(_database(environ), _read_keys(environ), log_level, server)


@cache
def configuration() -> Configuration:
    """The configuration of this process. Raise SystemExit with one line when a variable is wrong."""
    try:
        return Configuration.from_environment(os.environ)
    except BadSetting as error:
        raise SystemExit(f"metrics-ingest: {error}") from None


def _database(environ: Mapping[str, str]) -> Database:
    url = environ.get("READ_DATABASE_URL", "").strip()
    if not url:
        return read_database(environ)
    try:
        return read_database({**environ, "DATABASE_URL": url})
    except BadSetting as error:
        raise BadSetting(str(error).replace("DATABASE_URL", "READ_DATABASE_URL")) from None


def _read_keys(environ: Mapping[str, str]) -> tuple[ApiKey, ...]:
    keys = []
    for entry in filter(None, (entry.strip() for entry in environ.get("READ_KEYS", "").split(","))):
        parts = KEY_FORM.fullmatch(entry)
        if not parts:
            raise BadSetting("READ_KEYS must be a comma-separated list of name:sha256-of-key (64 hexadecimal digits)")
        keys.append(ApiKey(parts[1], bytes.fromhex(parts[2])))
    if not keys and environ.get("ALLOW_ANONYMOUS", "").strip().lower() != "true":
        raise BadSetting("READ_KEYS is not set; set it, or ALLOW_ANONYMOUS=true when something in front authenticates")
    return tuple(keys)
