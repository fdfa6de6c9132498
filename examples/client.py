"""Record metrics with the client that batches and retries in the background (`pip install metrics-ingest[client]`)."""

import os
import sys

from metrics_ingest.client import Client

if __name__ == "__main__":
    url = os.environ.get("METRICS_URL", "http://localhost:8000")
    with Client(url, user_id="b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d") as client:
        for value in (1.5, 2.5, 3.5):
            client.record("talked_time", value)
        stored = client.flush(60)
    sys.stdout.write("3 metrics stored\n" if stored else "the functions cannot be reached\n")
