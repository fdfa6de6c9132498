"""The command `metrics-ingest`: what an operator does by hand."""

import os
import sys

import click
import pg8000.exceptions

from metrics_ingest import __version__, keys
from metrics_ingest.settings import BadSetting, Database, read_database


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Look after the database that metrics are ingested into. It is found by DATABASE_URL, or PGHOST and its like."""


main.add_command(keys.command)


def database() -> Database:
    """The database that the environment names. Raise click.UsageError when it names none."""
    try:
        return read_database(os.environ)
    except BadSetting as error:
        raise click.UsageError(str(error)) from error


@main.command()
@click.option("--rollback", is_flag=True, help="Undo every migration instead: all tables and ALL DATA go.")
@click.option("--yes", is_flag=True, help="Do not ask before a rollback.")
def migrate(rollback: bool, yes: bool) -> None:
    """Bring the schema up to date and make the partitions of this month and the next two."""
    from metrics_ingest import migrations

    if rollback and not yes:
        click.confirm("This drops every table and all data. Go on?", abort=True)
    try:
        names = migrations.rollback(database()) if rollback else migrations.migrate(database())
    except (pg8000.exceptions.Error, OSError) as error:
        click.echo(f"metrics-ingest: cannot migrate: {error}", err=True)
        sys.exit(1)
    for name in names:
        click.echo(f"{'rolled back' if rollback else 'applied'} {name}")
    if not names:
        click.echo("nothing to do: the schema is up to date" if not rollback else "nothing to roll back")
