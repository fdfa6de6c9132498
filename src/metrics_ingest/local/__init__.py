"""`make run`: all functions on one port, with an embedded PostgreSQL."""
