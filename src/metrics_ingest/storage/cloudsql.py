"""IAM login to Cloud SQL with its Python Connector (the extra `cloudsql`); imported only if CLOUD_SQL_INSTANCE is set.

The connector makes the TLS tunnel, and a token of the service account replaces the password.
"""

from functools import cache

import pg8000.dbapi
import pg8000.exceptions
from google.cloud.sql.connector import Connector

from metrics_ingest.settings import Database


def connect(instance: str, database: Database, timeout_s: float | None) -> pg8000.dbapi.Connection:
    """Connect to PROJECT:REGION:INSTANCE as the IAM user `database.user`. Raise pg8000's errors."""
    try:
        return connector().connect(
            instance,
            "pg8000",
            user=database.user,
            db=database.database,
            timeout=timeout_s or 30,
            application_name="metrics-ingest",
            startup_params={"client_encoding": "UTF8"},
        )
    except pg8000.exceptions.Error:
        raise
    except Exception as error:  # of the connector, google-auth or aiohttp: there is no connection, and a retry may help
        raise pg8000.exceptions.InterfaceError(f"Cloud SQL connector: {type(error).__name__}: {error}") from error


@cache
def connector() -> Connector:
    """The process's connector. Lazy, because between requests it may have no CPU time to refresh certificates."""
    return Connector(enable_iam_auth=True, refresh_strategy="lazy")
