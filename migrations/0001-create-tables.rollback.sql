DROP TABLE metrics, sessions, metric_types, users;
