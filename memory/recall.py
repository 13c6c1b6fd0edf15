"""Recall: what a view holds that a query is about.

Owns the index over memories and over the passages of sources, and the order in which tiers answer. It calls no
model and reads no store. The index is a cache of the folded state. Invariant: hits and their order are a
function of the view and the query, never of the order in which siblings wrote.
"""

from bisect import bisect_right
from collections.abc import Callable

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
        self._spans: list[SourceSpan] = []
        self._sources: dict[str, tuple[str, list[Passage]]] = {}

    @property
    def sources(self) -> int:
        """How many sources are indexed. Sources are only ever added."""
        return len(self._sources)

    def add_source(self, digest: str, name: str, text: str) -> None:
        """Cut a source into passages and index them."""
        passages = cut(text)
        self._sources[digest] = (name, passages)
        for passage in passages:
            self._passages.add(len(self._spans), text[passage.start : passage.end], f"{passage.heading} {name}")
            self._spans.append(SourceSpan(digest, passage.start, passage.end))

    def passages(self, digest: str) -> list[SourceSpan]:
        """The passages of one source, in order."""
        _, passages = self._sources.get(digest, ("", []))
        return [SourceSpan(digest, passage.start, passage.end) for passage in passages]

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
        if not isinstance(ref, SourceSpan):
            return "", ""
        name, passages = self._sources.get(ref.source, ("", []))
        at = bisect_right(passages, ref.start, key=lambda passage: passage.start) - 1
        return name, passages[at].heading if at >= 0 and ref.start < passages[at].end else ""

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
        return [HitRecord(self._spans[doc], score, "source") for doc, score in self._passages.search(query, k)]
