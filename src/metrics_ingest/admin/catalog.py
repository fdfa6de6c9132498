"""What the catalog of the database says about the partitioned tables and their months.

The text of a partition's bounds is written and read in one transaction, whose DateStyle and time zone are pinned.
"""

TIME_COLUMNS = {"metrics": "timestamp", "rejected_metrics": "received_at"}  # what each table is partitioned by

PARTITIONS = """
    SELECT parent.relname AS table, child.relname AS partition,
           CAST(substring(bound.text FROM 'FROM \\(''([^'']+)''') AS timestamptz) AS from,
           CAST(substring(bound.text FROM 'TO \\(''([^'']+)''') AS timestamptz) AS to,
           pg_stat_get_live_tuples(child.oid) AS rows, pg_total_relation_size(child.oid) AS bytes
    FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent,
         LATERAL pg_get_expr(child.relpartbound, child.oid) AS bound (text)
    WHERE parent.oid IN (to_regclass('metrics'), to_regclass('rejected_metrics')) AND parent.relkind = 'p'
    ORDER BY parent.relname, 3 NULLS LAST
"""
OLD = f"""
    SELECT * FROM ({PARTITIONS}) AS partitions
    WHERE "table" = :parent AND "to" <= now() - CAST(:age AS interval) ORDER BY "to"
"""  # noqa: S608  # made of constants of this module only
# A second opinion on a partition that is to be dropped: from its name, and from its constraint, an expression that the
# server evaluates, instead of from its bounds.
END_BY_NAME = """
    SELECT make_timestamptz(CAST(found[1] AS int), CAST(found[2] AS int), 1, 0, 0, 0, 'UTC') + interval '1 month'
               AS by_name,
           pg_get_partition_constraintdef(to_regclass(:partition)) AS constraint
    FROM regexp_match(:partition, '^' || :parent || '_p([0-9]{4})_(0[1-9]|1[0-2])$') AS found
    WHERE found IS NOT NULL
"""
CONTAINS = "SELECT {constraint} FROM (VALUES (CAST(:moment AS timestamptz))) AS probe ({column})"
IS_PARTITION = """
    SELECT FROM pg_inherits WHERE inhparent = to_regclass(:parent) AND inhrelid = to_regclass(:partition)
"""
FOREIGN_KEYS = """
    SELECT conname, pg_get_constraintdef(oid) AS definition, confrelid::regclass::text AS target
    FROM pg_constraint WHERE conrelid = to_regclass(:parent) AND contype = 'f'
"""
# The months of the default's rows and the months ahead, without those that a partition covers.
MISSING_MONTHS = f"""
    WITH wanted (month, rows) AS (
        SELECT month, CAST(sum(rows) AS bigint) FROM (
            SELECT date_trunc('month', {{column}}), count(*) FROM {{parent}}_default
            WHERE isfinite({{column}}) GROUP BY 1
            UNION ALL
            SELECT date_trunc('month', now()) + make_interval(months => n), 0 FROM generate_series(0, {{ahead}}) AS n
        ) AS months (month, rows) GROUP BY month)
    SELECT '{{parent}}_p' || to_char(month, 'YYYY_MM') AS table, rows,
           format('{{column}} >= %L AND {{column}} < %L', month, month + interval '1 month') AS condition,
           format('FOR VALUES FROM (%L) TO (%L)', month, month + interval '1 month') AS bounds
    FROM wanted
    WHERE NOT EXISTS (SELECT FROM ({PARTITIONS}) AS partitions
                      WHERE "table" = '{{parent}}' AND "from" < month + interval '1 month' AND "to" > month)
    ORDER BY month
"""  # noqa: S608  # made of constants of this module only
# The comment of a table that is to become a partition. Only an empty table with it may be used or dropped.
RECORD = "metrics-ingest is preparing this table as a partition"
EMPTY_OF_OURS = f"""
    SELECT NOT EXISTS (
        (SELECT attname, atttypid, atttypmod, attnotnull FROM pg_attribute
         WHERE attrelid = to_regclass(:parent) AND attnum > 0 AND NOT attisdropped)
        EXCEPT
        (SELECT attname, atttypid, atttypmod, attnotnull FROM pg_attribute
         WHERE attrelid = child.oid AND attnum > 0 AND NOT attisdropped)) AS same_columns
    FROM pg_class AS child
    WHERE oid = to_regclass(:table) AND relkind = 'r' AND NOT relispartition
      AND obj_description(oid, 'pg_class') = '{RECORD}'
"""  # noqa: S608  # made of constants of this module only
# Tables with the name of a month that are no partitions: of an operator, or from an interrupted run of an old version.
STRAY_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
      AND relname ~ ('^' || :parent || '_p[0-9]{4}_[0-9]{2}$')
    ORDER BY relname
"""
