"""IAM login to Cloud SQL with its Python Connector (the extra `cloudsql`); imported only if CLOUD_SQL_INSTANCE is set.

The connector makes the TLS tunnel, and a token of the service account replaces the password.
"""

from typing import Any

import pg8000.dbapi
import pg8000.exceptions
from google.cloud.sql.connector import Connector

from metrics_ingest.settings import Database

# The process's. Lazy, because between requests it may have no CPU time to refresh certificates.
CONNECTOR = Connector(enable_iam_auth=True, refresh_strategy="lazy")


def connect_with_iam(instance: str, database: Database, **arguments: Any) -> pg8000.dbapi.Connection:
    """Connect to PROJECT:REGION:INSTANCE as the IAM user `database.user`. Raise pg8000's errors."""
    try:
        return CONNECTOR.connect(instance, "pg8000", user=database.user, db=database.database, **arguments)
    except pg8000.exceptions.Error:
        raise
    except Exception as error:  # of the connector, google-auth or aiohttp: there is no connection, and a retry may help
        raise pg8000.exceptions.InterfaceError(f"Cloud SQL connector: {type(error).__name__}: {error}") from error
