-- Users, their sessions, and their metrics. user_id is the first column of every key, so one index finds a duplicate and
-- a user's metrics in a time range, and the same statements run on Citus, where the tables are distributed by user_id.

CREATE TABLE users (
    user_id    uuid         CONSTRAINT users_pkey PRIMARY KEY,
    name       varchar(200) NOT NULL CONSTRAINT users_name_not_empty CHECK (name <> ''),
    email      varchar(320),
    created_at timestamptz  NOT NULL DEFAULT now()
);

-- The users whose erasure is under way: store_metrics refuses their metrics as those of unknown users.
CREATE TABLE user_erasures (
    user_id    uuid        CONSTRAINT user_erasures_pkey PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now()
);

-- The users who were erased, by a digest: of what their clients still send, nothing is kept in rejected_metrics.
CREATE TABLE forgotten_users (
    user_digest  bytea       CONSTRAINT forgotten_users_pkey PRIMARY KEY,  -- sha256(uuid_send(user_id))
    forgotten_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE metric_types (
    metric_type varchar(64) CONSTRAINT metric_types_pkey PRIMARY KEY
                            CONSTRAINT metric_types_name_format CHECK (metric_type ~ '^[a-z][a-z0-9_]{0,63}$'),
    kind        varchar(16) NOT NULL
                            CONSTRAINT metric_types_kind_known CHECK (kind IN ('duration', 'counter', 'gauge', 'score', 'flag')),
    unit        varchar(32) NOT NULL DEFAULT '',
    min_value   float8,
    max_value   float8,
    aggregation varchar(16) NOT NULL
                            CONSTRAINT metric_types_aggregation_known CHECK (aggregation IN ('sum', 'mean', 'any', 'min', 'max', 'last')),
    description text        NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    retired_at  timestamptz,
    CONSTRAINT metric_types_range_not_empty CHECK (min_value <= max_value)
);

INSERT INTO metric_types (metric_type, kind, unit, min_value, max_value, aggregation, description) VALUES
    ('talked_time',     'duration', 's',     0, 86400, 'sum',  'Seconds that the user talked'),
    ('microphone_used', 'flag',     '',      0, 1,     'any',  'Whether the microphone was used'),
    ('speaker_used',    'flag',     '',      0, 1,     'any',  'Whether the speaker was used'),
    ('voice_sentiment', 'score',    'score', -1, 1,    'mean', 'Sentiment of the voice, from -1 (negative) to 1 (positive)');

CREATE TABLE sessions (
    user_id    uuid        NOT NULL CONSTRAINT sessions_user_id_fkey REFERENCES users,
    session_id uuid        NOT NULL,
    start_time timestamptz NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (user_id, session_id)
);

-- Finds the sessions that began in a time range. They are stored roughly in the order in which they begin, so block ranges
-- are enough, and such an index adds nothing measurable to an insert.
CREATE INDEX sessions_start_time_brin ON sessions
USING brin (start_time timestamptz_minmax_multi_ops) WITH (pages_per_range = 32, autosummarize = on);

-- Numbers the metrics as they are stored. Summaries are up to date when they have all numbers. Unlike times and transaction
-- ids, numbers survive a dump, a failover and a wrong clock. No CACHE: a session must not keep numbers for later.
CREATE SEQUENCE metrics_arrival_seq;

-- Partitioned by month: create_metrics_partitions makes the partitions.
-- No foreign key to metric_types: it would cost a fifth of the insert rate. store_metrics checks the type.
CREATE TABLE metrics (
    user_id     uuid        NOT NULL,
    timestamp   timestamptz NOT NULL,
    metric_id   uuid        NOT NULL,
    session_id  uuid        NOT NULL,
    metric_type varchar(64) NOT NULL,
    value       float8      NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    arrival     bigint      NOT NULL DEFAULT nextval('metrics_arrival_seq'),
    CONSTRAINT metrics_pkey PRIMARY KEY (user_id, timestamp, metric_id),
    CONSTRAINT metrics_session_fkey FOREIGN KEY (user_id, session_id) REFERENCES sessions
) PARTITION BY RANGE (timestamp);
ALTER SEQUENCE metrics_arrival_seq OWNED BY metrics.arrival;

-- Takes the metrics of months that have no partition, so that none is refused.
CREATE TABLE metrics_default PARTITION OF metrics DEFAULT;

-- Finds the metrics received lately, and those of an hour, without reading whole months: rows are appended in the order of
-- received_at and arrival, and mostly of timestamp. It has a few kilobytes and no measurable cost for inserts, where a B-tree makes
-- them 5% slower (docs/data-model.md). minmax_multi keeps a block range selective when a few late rows are in it.
CREATE INDEX metrics_received_brin ON metrics
USING brin (received_at, timestamp timestamptz_minmax_multi_ops, arrival) WITH (pages_per_range = 64, autosummarize = on);
