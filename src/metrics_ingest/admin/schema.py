"""`metrics-ingest schema`: the tables of the database as a Mermaid diagram, which docs/data-model.md contains."""

from itertools import groupby
from typing import Any

import click

from metrics_ingest.admin.database import open_connection, query

COLUMNS = """
    SELECT relname AS table, attname AS name,
           CASE WHEN typelem <> 0 AND typlen = -1 THEN substr(typname, 2) || '[]' ELSE typname END AS type,
           (SELECT string_agg(DISTINCT CASE contype WHEN 'p' THEN 'PK' ELSE 'FK' END, ', ') FROM pg_constraint
            WHERE conrelid = pg_class.oid AND contype IN ('p', 'f') AND attnum = ANY (conkey)) AS key
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid JOIN pg_type ON pg_type.oid = atttypid
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
      AND attnum > 0 AND NOT attisdropped AND relname !~ '^_?yoyo'
    ORDER BY relname, attnum
"""
REFERENCES = """
    SELECT conrelid::regclass::text AS table, confrelid::regclass::text AS target FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace ORDER BY 2 DESC, 1
"""


def draw(connection: Any) -> str:
    """Return the tables and foreign keys as a Mermaid entity-relationship diagram."""
    lines = ["erDiagram"]
    lines += [f"    {row['target']} ||--o{{ {row['table']} : has" for row in query(connection, REFERENCES)]
    for table, columns in groupby(query(connection, COLUMNS), key=lambda row: row["table"]):
        lines.append(f"    {table} {{")
        lines += [f"        {' '.join(filter(None, (row['type'], row['name'], row['key'])))}" for row in columns]
        lines.append("    }")
    return "\n".join(lines)


@click.command()
def command() -> None:
    """Print the tables and their columns as a Mermaid diagram."""
    with open_connection() as connection:
        click.echo(draw(connection))
