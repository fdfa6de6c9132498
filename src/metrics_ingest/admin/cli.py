"""The command `metrics-ingest`: what an operator does by hand."""

import sys
from importlib import import_module

import click

from metrics_ingest import __version__
from metrics_ingest.admin.console import database

# The other commands: where each is (the module's attribute `command`), and what `--help` says without importing it.
COMMANDS = {
    "export": ("export", "Write the metrics of a time range as NDJSON or CSV."),
    "key": ("keys", "Make API keys."),
    "load": ("load", "Send files of metrics through ingest_batch."),
    "partitions": ("partitions", "The months' tables: make, list, drop them."),
    "rejected": ("rejected", "What was refused: count, list, replay it."),
    "schema": ("schema", "Draw the tables as a Mermaid diagram."),
    "summaries": ("summaries", "Bring the summaries up to date."),
    "type": ("metric_types", "What can be measured: add, list, set, retire."),
    "user": ("user", "What is held of a user; and forgetting it."),
}


class Commands(click.Group):
    """Imports a command's module when it is called, so that the others cost nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, if there is one."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(f"metrics_ingest.admin.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command."""
        own = {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        texts = own | {name: text for name, (_, text) in COMMANDS.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, texts[name]) for name in self.list_commands(ctx)])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Look after the database that metrics are ingested into. It is found by DATABASE_URL, or PGHOST and its like."""


@main.command()
@click.option("--rollback", is_flag=True, help="Undo every migration instead: all tables and ALL DATA go.")
@click.option("--yes", is_flag=True, help="Do not ask before a rollback.")
def migrate(rollback: bool, yes: bool) -> None:
    """Bring the schema up to date and make the partitions of this month and the next two."""
    import pg8000.exceptions

    from metrics_ingest.storage import migrations

    if rollback and not yes:
        click.confirm("This drops every table and all data. Go on?", abort=True)
    try:
        names = migrations.rollback(database()) if rollback else migrations.migrate(database())
    except (migrations.UnknownMigrations, pg8000.exceptions.Error, OSError) as error:
        click.echo(f"metrics-ingest: cannot migrate: {error}", err=True)
        sys.exit(1)
    for name in names:
        click.echo(f"{'rolled back' if rollback else 'applied'} {name}")
    if not names:
        click.echo("nothing to do: the schema is up to date" if not rollback else "nothing to roll back")
