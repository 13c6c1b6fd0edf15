"""Finding: what a view holds that a query is about.

Owns the index over memories, over the passages of sources and over the texts of the log, and the order in which
these tiers answer. It calls no model and reads no store. The index is a cache of the folded state. Invariant: hits
and their order are a function of the view and the query, never of the order in which siblings wrote.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import islice

import msgspec
import numpy as np

from treering.events.catalogue import HitRecord, LogSpan, MemoryRef, Ref, SourceSpan
from treering.memory.hierarchy import Hierarchy, View
from treering.memory.lexical import root
from treering.memory.passages import Passage, cut
from treering.memory.ranking import LexicalIndex, Mask, Scores, best
from treering.memory.recall import Past, Query, is_under
from treering.memory.views import Rows, ViewedMemories

__all__ = ["RecallIndex"]

_K1, _B = 0.9, 0.4
"""Memories are short and of one length: the values that Anserini's baselines use (Yang, Fang and Lin 2017)."""

_NEAR = ((1, 0.5), (2, 0.25), (3, 0.125))
"""What a memory gets of the score of the one written `distance` before it by the same task; half of it from the one
after. An answer rarely repeats the words of the question before it."""


class RecallIndex:
    """An index that follows a run's state as memories, sources and texts of the log are added to it."""

    def __init__(self) -> None:
        self._memories = LexicalIndex(_K1, _B, form=root)
        self._views = ViewedMemories()
        self._passages = LexicalIndex()
        self._spans: list[SourceSpan] = []
        self._sources: dict[str, tuple[str, str]] = {}
        self._cuts: dict[str, list[Passage]] = {}
        self._searchable = 0
        self._log = LexicalIndex(form=root)
        self._log_spans: list[LogSpan] = []
        self._log_tasks: dict[str, int] = {}
        self._log_places = array("q")

    @property
    def sources(self) -> int:
        """How many sources are known. Sources are only ever added."""
        return len(self._sources)

    def add_source(self, digest: str, name: str, text: str) -> None:
        """Take in a source. It is cut when somebody asks for its passages, and indexed when somebody searches."""
        self._sources[digest] = (name, text)

    def add_log_text(self, task: str, op: int, what: str, text: str) -> None:
        """Cut a text that an op brought into the log into passages and index them."""
        number = self._log_tasks.setdefault(task, len(self._log_tasks))
        for passage in cut(text):
            self._log.add(text[passage.start : passage.end])
            self._log_spans.append(LogSpan(task, op, what, passage.start, passage.end))
            self._log_places.append(number << 32 | op)

    def passages(self, digest: str) -> list[SourceSpan]:
        """The passages of one source, in order."""
        return [SourceSpan(digest, passage.start, passage.end) for passage in self._cut(digest)]

    def recall(
        self, hierarchy: Hierarchy, view: View, query: Query, sources: set[str], past: Past
    ) -> list[HitRecord]:
        """The best of each tier: hot memories first; cold ones only fill what hot ones leave free; then passages of
        sources; then texts of the log.

        `sources` are digests of those that may be seen, and of texts of the log those that `past` says.
        """
        found: list[HitRecord] = []
        if query.over in ("memory", "all"):
            found += self._search_memories(hierarchy, view, query)
        if query.over in ("sources", "all") and not query.task and not query.has_age:
            found += self._search_sources(query, sources)
        if query.deep and not query.source and not query.has_age:
            found += self._search_log(query, past)
        return found

    def describe(self, ref: Ref) -> tuple[str, str]:
        """The name of the source a passage stands in, and the headings above it."""
        if not isinstance(ref, SourceSpan):
            return "", ""
        name, passages = self._sources.get(ref.source, ("", ""))[0], self._cut(ref.source)
        at = bisect_right(passages, ref.start, key=lambda passage: passage.start) - 1
        return name, passages[at].heading if at >= 0 and ref.start < passages[at].end else ""

    def _cut(self, digest: str) -> list[Passage]:
        if digest not in self._cuts and digest in self._sources:
            self._cuts[digest] = cut(self._sources[digest][1])
        return self._cuts.get(digest, [])

    def _index_sources(self) -> None:
        for digest, (name, text) in islice(self._sources.items(), self._searchable, None):
            for passage in self._cut(digest):
                self._passages.add(text[passage.start : passage.end], f"{passage.heading} {name}")
                self._spans.append(SourceSpan(digest, passage.start, passage.end))
            self._searchable += 1

    # --- tiers ------------------------------------------------------------------------------------------

    def _search_memories(self, hierarchy: Hierarchy, view: View, query: Query) -> list[HitRecord]:
        views = self._views
        for id in views.follow(hierarchy):
            self._memories.add(hierarchy.memories[id].text)
        hot, seen = views.masks(hierarchy, view)
        scores = self._memories.scores(query.text, seen)
        _add_neighbours(scores, *views.sequences(hierarchy, view, seen))
        accepts = self._accepts(hierarchy, view, query)
        found: list[HitRecord] = []
        for tier, mask in (("hot", hot), ("cold", seen & ~hot)):
            ranked = _take(np.where(mask, scores, 0.0), query.k - len(found), views.ids.__getitem__, accepts)
            for row, score in ranked:
                id = views.ids[row]
                writers = hierarchy.written(id, view)
                refs = hierarchy.provenance(id, view)
                found.append(HitRecord(MemoryRef(id), score, tier, writers[0].task if writers else "", refs))
        return found

    def _accepts(self, hierarchy: Hierarchy, view: View, query: Query) -> Callable[[int], bool] | None:
        """Whether a memory passes the filters; None if there are none."""
        if not (query.task or query.source or query.has_age):
            return None
        clock = hierarchy.clock_of(view[0][0])
        sources = self._named(query.source)

        def accept(row: int) -> bool:
            id = self._views.ids[row]
            writes = hierarchy.written(id, view)
            if query.task and not any(is_under(one.task, query.task) for one in writes):
                return False
            if query.has_age:
                age = clock - writes[0].clock
                if age < query.min_age_tokens or (query.max_age_tokens is not None and age > query.max_age_tokens):
                    return False
            return not query.source or not sources.isdisjoint(hierarchy.origins(id, view))

        return accept

    def _search_sources(self, query: Query, seen: set[str]) -> list[HitRecord]:
        self._index_sources()
        visible = None if seen.issuperset(self._sources) else self._of_sources(seen)
        scores = self._passages.scores(query.text, visible)
        if query.source:
            scores = np.where(self._of_sources(self._named(query.source)), scores, 0.0)
        ranked = _take(scores, query.k, lambda doc: (self._spans[doc].source, self._spans[doc].start))
        return [HitRecord(self._spans[doc], score, "source") for doc, score in ranked]

    def _named(self, source: str) -> set[str]:
        """Digests of the sources with this name or digest."""
        return {digest for digest, (name, _) in self._sources.items() if source in (name, digest)}

    def _of_sources(self, digests: set[str]) -> Mask:
        return np.fromiter((span.source in digests for span in self._spans), np.bool_, len(self._spans))

    def _search_log(self, query: Query, past: Past) -> list[HitRecord]:
        if not self._log_spans:
            return []
        places = np.frombuffer(self._log_places, np.int64)
        limits = np.zeros(len(self._log_tasks), np.int64)
        among = np.zeros(len(self._log_tasks), np.bool_)
        for task, number in self._log_tasks.items():
            limits[number] = past(task)
            among[number] = not query.task or is_under(task, query.task)
        scores = self._log.scores(query.text, (places & 0xFFFFFFFF) < limits[places >> 32])
        spans = self._log_spans
        key: Callable[[int], object] = lambda doc: msgspec.structs.astuple(spans[doc])  # noqa: E731
        ranked = _take(np.where(among[places >> 32], scores, 0.0), query.k, key)
        return [HitRecord(spans[doc], score, "log", spans[doc].task) for doc, score in ranked]


def _add_neighbours(scores: Scores, rows: Rows, writers: Rows) -> None:
    """Give each row that has a score a share of those of the rows that the same task wrote around it.

    `rows` are in the order of writing, task by task, and `writers` says of each which task that was.
    """
    own = scores[rows]
    near = np.zeros(len(rows))
    for distance, part in _NEAR:
        same = writers[distance:] == writers[:-distance]
        near[distance:] += part * own[:-distance] * same
        near[:-distance] += part / 2 * own[distance:] * same
    scores[rows] += np.where(own > 0.0, near, 0.0)


def _take(
    scores: Scores, k: int, key: Callable[[int], object], accepts: Callable[[int], bool] | None = None
) -> list[tuple[int, float]]:
    """The `k` best that are accepted, equal scores in the order of `key`, which is content and not chance."""
    kept: list[tuple[int, float]] = []
    ranked: Iterable[tuple[int, float]] = best(scores, k if accepts is None else len(scores)) if k > 0 else ()
    for doc, score in ranked:
        if len(kept) >= k and score < kept[k - 1][1]:
            break
        if accepts is None or accepts(doc):
            kept.append((doc, score))
    kept.sort(key=lambda found: (-found[1], key(found[0])))
    return kept[:k]
