"""The dashboard: a page and the read-only JSON API under it (function `dashboard`)."""
