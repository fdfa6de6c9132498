DROP TABLE metrics, sessions, metric_types, users, user_erasures, forgotten_users;
