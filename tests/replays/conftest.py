"""What several tests of replays start from."""

import pytest

from treering.events.in_memory import InMemoryStore
from treering.events.sqlite import SQLiteStore


@pytest.fixture(params=["memory", "sqlite"])
def empty(request, tmp_path):
    """A store that holds nothing."""
    if request.param == "memory":
        yield InMemoryStore()
        return
    store = SQLiteStore(tmp_path / "other.db")
    yield store
    store.close()
