"""API keys: 256 random bits that the client keeps, and their SHA-256, which is all that API_KEYS holds.

A fast hash will do: nobody guesses 256 bits, which is what a slow one is for.
"""

import hashlib
import re
import secrets

import click

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def new_key(name: str) -> tuple[str, str]:
    """A new key, and its entry for API_KEYS. Raise ValueError for a name that could not stand there."""
    if not NAME.fullmatch(name):
        raise ValueError("a key's name has 1 to 64 letters, digits, dots, hyphens and underscores")
    key = f"mi_{secrets.token_urlsafe(32)}"  # the prefix lets secret scanners find one that got away
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


@click.group(name="key")
def command() -> None:
    """Make API keys."""


@command.command()
@click.option("--name", required=True, help="Who will use it; the log names the caller by it.")
def new(name: str) -> None:
    """Print a new key, once, and its entry for API_KEYS. To rotate, append the entry, change over, drop the old one."""
    try:
        key, entry = new_key(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"key (shown only now; give it to the client): {key}")
    click.echo(f"entry (append it to API_KEYS, after a comma): {entry}")
