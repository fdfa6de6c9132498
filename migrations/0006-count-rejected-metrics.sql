-- How many metrics were rejected, also those that the functions did not keep (REJECTED_PER_S), by UTC day.

CREATE TABLE rejected_counts (
    day      date        NOT NULL,
    route    varchar(64) NOT NULL,
    key_name varchar(64) NOT NULL DEFAULT '',  -- of the API key, or empty
    code     varchar(64) NOT NULL,             -- of the first fault, or `unlisted` where the faults were only counted
    rejected bigint      NOT NULL,
    CONSTRAINT rejected_counts_pkey PRIMARY KEY (day, route, key_name, code)
);
