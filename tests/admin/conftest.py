"""Fixtures for tests of the commands."""

from collections.abc import Iterator

import pytest

from metrics_ingest.admin import drain


@pytest.fixture(params=[drain.REPLACE_ABOVE, 0], ids=["by-month", "replaced"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty the default month by month, and, in a second run of the test, by replacing it."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, because tests undo what they have patched
        patch.setattr(drain, "REPLACE_ABOVE", request.param)
        yield
