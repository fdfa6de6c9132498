"""`metrics-ingest key`: API keys of 256 random bits, which the client keeps; API_KEYS holds their SHA-256 only.

A fast hash is enough, because 256 random bits cannot be guessed; slow hashes are for passwords.
"""

import hashlib
import re
import secrets

import click

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def new_key(name: str) -> tuple[str, str]:
    """Return a new key and its entry for API_KEYS. Raise click.BadParameter for a name that API_KEYS does not allow."""
    if not NAME.fullmatch(name):
        raise click.BadParameter("a key's name has 1 to 64 letters, digits, dots, hyphens and underscores")
    key = f"mi_{secrets.token_urlsafe(32)}"  # secret scanners find leaked keys by the prefix
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


@click.group(name="key")
def command() -> None:
    """Make API keys."""


@command.command(short_help="Make a key, and its entry for API_KEYS.")
@click.option("--name", required=True, help="The name of the client that will use the key; it appears in the log.")
def new(name: str) -> None:
    """Print a new key and its entry for API_KEYS. The key is not stored anywhere.

    To replace a key, append the new entry to API_KEYS, give the client the new key, then remove the old entry.
    """
    key, entry = new_key(name)
    click.echo(f"key (shown only now; give it to the client): {key}")
    click.echo(f"entry (append it to API_KEYS, after a comma): {entry}")
