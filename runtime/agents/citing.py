"""Citing: where an answer stands.

Owns what a citation is, and the way from a hit to the passages that it stands for. It performs nothing.
"""

from collections.abc import Sequence

import msgspec

from treering.events.catalogue import MemoryRef, SourceSpan
from treering.memory.recall import Hit
from treering.runtime.task import Task

__all__ = ["CITATIONS", "Citation", "citations_of", "spans_behind"]

CITATIONS = 3
"""How many an answer has at most."""


class Citation(msgspec.Struct, frozen=True):
    """Characters `start` to `end` of a source, which are `text`."""

    source: str
    start: int
    end: int
    text: str


def spans_behind(task: Task, hit: Hit) -> list[SourceSpan]:
    """The passages a hit stands for: itself, or those that a memory was made from."""
    refs = task.provenance(hit.ref) if isinstance(hit.ref, MemoryRef) else (hit.ref,)
    return [ref for ref in refs if isinstance(ref, SourceSpan)]


def citations_of(task: Task, spans: Sequence[SourceSpan]) -> tuple[Citation, ...]:
    """The first of these passages, each once, as citations."""
    names = {source.source: source.name for source in task.sources}
    distinct = list(dict.fromkeys(spans))[:CITATIONS]
    return tuple(Citation(names[span.source], span.start, span.end, task.text(span)) for span in distinct)
