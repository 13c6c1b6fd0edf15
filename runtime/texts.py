"""What references stand for: the texts of a log.

Owns a cache of source texts over the store's blobs. Invariant: a reference always stands for the same text.
"""

from treering.events.catalogue import Ref, SourceSpan
from treering.events.errors import StoreError, UsageError
from treering.events.log import LogReader
from treering.memory.hierarchy import Hierarchy

__all__ = ["Texts"]


class Texts:
    """Finds the texts of one store, and keeps those of sources."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self._sources: dict[str, str] = {}

    def keep(self, digest: str, text: str) -> None:
        """A source's text, known before its blob is on disk."""
        self._sources[digest] = text

    def source(self, digest: str) -> str:
        """The text of a source. Raises StoreError if it was destroyed."""
        text = self._sources.get(digest)
        if text is None:
            text = self._store.blob(digest)
            if text is None:
                raise StoreError(f"expected the text of a source as blob {digest}, found none: it was destroyed")
            self._sources[digest] = text
        return text

    def of(self, ref: Ref, memory: Hierarchy) -> str:
        """The text that `ref` stands for. Raises UsageError for a memory that is none of the run's."""
        if isinstance(ref, SourceSpan):
            return self.source(ref.source)[ref.start : ref.end]
        found = memory.memories.get(ref.id)
        if found is None:
            raise UsageError(f"expected a memory of this run, found {ref.id}")
        return found.text
