"""From valid metrics and users to committed rows: the queue, the database connections, the SQL calls, the schema."""
