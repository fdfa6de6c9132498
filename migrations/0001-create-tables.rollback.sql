DROP TABLE metrics;
DROP TABLE sessions;
DROP TABLE metric_types;
DROP TABLE users;
