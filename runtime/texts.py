"""What references stand for: the texts of a log.

Owns a cache of source texts over the store's blobs. Invariant: a reference always stands for the same text.
"""

from collections.abc import Iterator

import msgspec

from treering.events.catalogue import (
    Compacted,
    Event,
    Header,
    LogSpan,
    ModelCalled,
    ModelReplied,
    Ref,
    SourceSpan,
    ToolReturned,
)
from treering.events.codec import decode
from treering.events.errors import StoreError, UsageError
from treering.events.log import LogStore
from treering.memory.hierarchy import Hierarchy

__all__ = ["LOG_KINDS", "Texts", "log_texts"]

LOG_KINDS = ("ModelCalled", "ModelReplied", "Compacted", "ToolReturned")
"""Kinds of events whose texts a deep recall searches."""


class Texts:
    """Finds the texts of one run, and keeps those of sources."""

    def __init__(self, store: LogStore, run: str) -> None:
        self._store = store
        self._run = run
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
        """The text that `ref` stands for. Raises UsageError for a memory or an op that is none of the run's."""
        if isinstance(ref, SourceSpan):
            return self.source(ref.source)[ref.start : ref.end]
        if isinstance(ref, LogSpan):
            return self._of_log(ref)[ref.start : ref.end]
        found = memory.memories.get(ref.id)
        if found is None:
            raise UsageError(f"expected a memory of this run, found {ref.id}")
        return found.text

    def _of_log(self, ref: LogSpan) -> str:
        for record in self._store.read(self._run, task=ref.task, kinds=LOG_KINDS):
            stored = decode(record)
            if stored.header.op == ref.op:
                for what, text in log_texts(stored.header, stored.event):
                    if what == ref.what:
                        return text
        raise UsageError(
            f"expected a {ref.what} of task {ref.task} op {ref.op}, found none; it may have been destroyed"
        )


def log_texts(header: Header, event: Event | None) -> Iterator[tuple[str, str]]:
    """The texts that an event brought into the log, and what each is: see `LogSpan`.

    Nothing of system tasks (a summary is in its compaction) and of scoring, which says nothing.
    """
    if "~" in header.task:
        return
    if isinstance(event, ModelCalled) and event.continuation is None:
        own = [
            part for entry in event.entries if entry.role != "system" for part in entry.parts if isinstance(part, str)
        ]
        if text := "\n".join(own).strip():
            yield "prompt", text
    elif isinstance(event, ModelReplied) and event.text:
        yield "reply", event.text
    elif isinstance(event, Compacted) and event.summary:
        yield "summary", event.summary
    elif isinstance(event, ToolReturned) and event.failure is None:
        result = msgspec.json.decode(event.result)
        yield "result", result if isinstance(result, str) else bytes(event.result).decode()
