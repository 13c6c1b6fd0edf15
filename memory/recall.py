"""Recall: what a view holds that a query is about.

Owns the index over memories and over the passages of sources, and the order in which tiers answer. It calls no
model and reads no store. The index is a cache of the folded state. Invariant: hits and their order are a
function of the view and the query, never of the order in which siblings wrote.
"""

from collections.abc import Callable, Iterable

import msgspec

from treering.events.catalogue import HitRecord, MemoryRef, Ref, SourceSpan
from treering.memory.hierarchy import Hierarchy, View
from treering.memory.lexical import LexicalIndex
from treering.memory.passages import Passage, cut

__all__ = ["Hit", "RecallIndex"]

_SPARE = 16
"""How many more candidates than asked for are ranked, so that ties at the end are broken by content."""


class Hit(msgspec.Struct, frozen=True):
    """One answer of a recall: its text, where it stands, and which tier gave it (`hot`, `cold`, `source`).

    `name` is the source's name and `heading` the trail of headings above a passage.
    """

    ref: Ref
    text: str
    score: float
    tier: str
    name: str = ""
    heading: str = ""


class RecallIndex:
    """An index that follows a run's state as memories and sources are added to it."""

    def __init__(self) -> None:
        self._memories = LexicalIndex()
        self._ids: list[str] = []
        self._passages = LexicalIndex()
        self._spans: list[tuple[str, Passage]] = []
        self._sources: dict[str, str] = {}

    def add_source(self, digest: str, name: str, text: str) -> None:
        """Cut a source into passages and index them; doing it twice is harmless."""
        if digest in self._sources:
            return
        self._sources[digest] = name
        for passage in cut(text):
            self._passages.add(len(self._spans), text[passage.start : passage.end], f"{passage.heading} {name}")
            self._spans.append((digest, passage))

    def passages(self, digest: str) -> list[SourceSpan]:
        """The passages of one source, in order."""
        return [SourceSpan(digest, passage.start, passage.end) for source, passage in self._spans if source == digest]

    def recall(self, hierarchy: Hierarchy, view: View, query: str, k: int, over: str) -> list[HitRecord]:
        """The best `k` of each of the tiers that `over` names: `memory`, `sources` or `all`.

        Hot memories first; cold ones only fill what hot ones leave free; then passages of sources.
        """
        found: list[HitRecord] = []
        if over in ("memory", "all"):
            self._follow(hierarchy)
            states = {id: hierarchy.state(id, view) for id in self._ids}
            for tier in ("hot", "cold"):
                if len(found) < k:
                    found += self._search_memories(query, k - len(found), tier, states)
        if over in ("sources", "all"):
            found += self._search_sources(query, k)
        return found

    def describe(self, ref: Ref) -> tuple[str, str]:
        """The name of the source a passage stands in, and the headings above it."""
        if isinstance(ref, SourceSpan):
            for source, passage in self._spans:
                if source == ref.source and passage.start <= ref.start < passage.end:
                    return self._sources[source], passage.heading
            return self._sources.get(ref.source, ""), ""
        return "", ""

    def _follow(self, hierarchy: Hierarchy) -> None:
        for id in list(hierarchy.memories)[len(self._ids) :]:
            self._memories.add(len(self._ids), hierarchy.memories[id].text)
            self._ids.append(id)

    def _search_memories(self, query: str, k: int, tier: str, states: dict[str, str | None]) -> list[HitRecord]:
        visible: Callable[[int], bool] = lambda doc: states[self._ids[doc]] == tier  # noqa: E731
        ranked = self._memories.search(query, k + _SPARE, visible)
        ordered = sorted(((-score, self._ids[doc]) for doc, score in ranked))
        return [HitRecord(MemoryRef(id), -negative, tier) for negative, id in ordered[:k]]

    def _search_sources(self, query: str, k: int) -> list[HitRecord]:
        hits: Iterable[tuple[int, float]] = self._passages.search(query, k)
        return [
            HitRecord(
                SourceSpan(self._spans[doc][0], self._spans[doc][1].start, self._spans[doc][1].end), score, "source"
            )
            for doc, score in hits
        ]
