"""The command `metrics-ingest`: the root, `migrate`, and the table of the other commands."""

import os
from importlib import import_module

import click

from metrics_ingest import __version__

# Command: its module (whose attribute `command` is the click command) and its line in `--help`.
COMMANDS = {
    "citus": ("citus", "Spread the tables over the nodes of a Citus cluster."),
    "export": ("export", "Write metrics to a file, as NDJSON or CSV."),
    "key": ("keys", "Make API keys."),
    "load": ("load", "Send files of metrics through ingest_batch."),
    "partitions": ("partitions", "List and maintain the monthly partitions; drop old data."),
    "rejected": ("rejected", "Count, list and replay the metrics that were rejected."),
    "schema": ("schema", "Print the tables as a Mermaid diagram."),
    "summaries": ("summaries", "Refresh the summaries that dashboards read."),
    "type": ("metric_types", "Add, list, change and retire metric types."),
    "user": ("user", "Register, list, export and show users, or erase one."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called, so that `--help` stays fast."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Replace the placeholder in the group by the command."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = import_module(f"metrics_ingest.admin.{COMMANDS[name][0]}").command
        return name, command, rest


PLACEHOLDERS = [click.Command(name, short_help=text) for name, (_, text) in COMMANDS.items()]


@click.group(cls=LazyGroup, commands=PLACEHOLDERS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Manage the database of metrics-ingest, which DATABASE_URL names: postgresql://user:password@host/database.

    Without DATABASE_URL, the variables of psql name it: PGHOST, PGUSER, PGPASSWORD, PGDATABASE and others; and without
    these it is the database of a `make run` of this directory, or of one above it.
    """


@main.command(short_help="Create or update the tables, functions and roles.")
@click.option("--rollback", is_flag=True, help="Undo every migration instead: drop all tables and ALL DATA.")
@click.option("--yes", is_flag=True, help="Do not ask before a rollback.")
def migrate(rollback: bool, yes: bool) -> None:
    """Bring the schema up to date, and create the partitions of this month and the next two.

    With WRITER_PASSWORD and READER_PASSWORD in the environment, the roles metrics_writer and metrics_reader may log in
    with these passwords afterwards.
    """
    from pg8000.exceptions import Error

    from metrics_ingest.admin.console import confirm
    from metrics_ingest.admin.database import allow_login, configured_database, failure
    from metrics_ingest.storage import migrations

    if rollback and not yes:
        confirm("This drops every table and all data. Go on?")
    try:
        names = (migrations.rollback if rollback else migrations.migrate)(configured_database())
    except migrations.UnknownMigrations as error:
        raise click.ClickException(f"cannot migrate: {error}") from error
    except (Error, OSError) as error:
        raise failure(error, "cannot migrate") from error
    for name in names:
        click.echo(f"{'rolled back' if rollback else 'applied'} {name}")
    for role, variable in (("metrics_writer", "WRITER_PASSWORD"), ("metrics_reader", "READER_PASSWORD")):
        if not rollback and (password := os.environ.get(variable)):
            allow_login(role, password)
            click.echo(f"{role} may log in")
    if not names:
        click.echo("nothing to roll back" if rollback else "nothing to do: the schema is up to date")
