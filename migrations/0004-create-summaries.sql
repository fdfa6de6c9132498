-- Rollups: the aggregates of one metric type over a session, over a user's UTC day, and over all users in a UTC hour.
-- refresh_summaries() keeps them up to date; the views on them are in functions/summary_views.sql. Pages have free space, so
-- that an update of a row stays on its page and changes no index (HOT).

CREATE TABLE rollup_columns (  -- a template, dropped below
    metric_count bigint      NOT NULL,
    total        float8      NOT NULL,
    lowest       float8      NOT NULL,
    highest      float8      NOT NULL,
    true_count   bigint      NOT NULL,
    first_at     timestamptz NOT NULL,
    first_value  float8      NOT NULL,
    last_at      timestamptz NOT NULL,
    last_value   float8      NOT NULL,
    exact_total  numeric     -- the sum of the values as decimals; total is the float8 nearest to it
);

CREATE TABLE session_rollup (
    user_id uuid NOT NULL, session_id uuid NOT NULL, metric_type varchar(64) NOT NULL, LIKE rollup_columns,
    CONSTRAINT session_rollup_pkey PRIMARY KEY (user_id, session_id, metric_type)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE user_day_rollup (
    user_id uuid NOT NULL, day date NOT NULL, metric_type varchar(64) NOT NULL, LIKE rollup_columns,
    CONSTRAINT user_day_rollup_pkey PRIMARY KEY (user_id, day, metric_type)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX user_day_rollup_day_idx ON user_day_rollup (day);

CREATE TABLE type_hour_rollup (
    metric_type varchar(64) NOT NULL, hour timestamptz NOT NULL, LIKE rollup_columns,
    CONSTRAINT type_hour_rollup_pkey PRIMARY KEY (metric_type, hour)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

DROP TABLE rollup_columns;

-- Hours from which metrics were erased; the next refresh recomputes them.
CREATE TABLE summary_repairs (
    metric_type varchar(64) NOT NULL,
    hour        timestamptz NOT NULL,
    CONSTRAINT summary_repairs_pkey PRIMARY KEY (metric_type, hour)
);

CREATE TABLE summary_state (
    only_row     boolean     NOT NULL DEFAULT true CONSTRAINT summary_state_pkey PRIMARY KEY
                             CONSTRAINT summary_state_one_row CHECK (only_row),
    unseen       int8multirange NOT NULL DEFAULT '{[1,)}',  -- metrics.arrival of what is not in the rollups yet
    raw_since    timestamptz NOT NULL DEFAULT '-infinity',  -- retention dropped older metrics; their rollups stay
    refreshed_at timestamptz
);
INSERT INTO summary_state DEFAULT VALUES;
