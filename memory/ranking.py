"""An inverted index that ranks documents by BM25.

Owns ranking. It knows nothing of items, sources or views: a document is a number, and what may be seen is a mask
that its caller passes in. Invariant: a search is a function of the visible documents and the query alone; documents
that cannot be seen change neither a score nor an order.
"""

from array import array
from collections import Counter
from collections.abc import Callable
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from treering.memory.lexical import query_terms, terms

__all__ = ["MAX_QUERY_TERMS", "LexicalIndex", "Mask", "Scores", "best"]

MAX_QUERY_TERMS = 64
_ROUNDING = 2e-6  # scores that round to the same six digits are closer than this

Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]


class LexicalIndex:
    """An append-only inverted index in memory. Not a record: it can be rebuilt from the texts at any time.

    Documents are numbered from zero in the order in which they are added. Ranks by BM25 (Robertson and Zaragoza
    2009), with the logarithm's argument raised by one so that a term in more than half of the documents still
    counts for something. A heading is a field that counts `heading_weight` times (Robertson, Zaragoza and Taylor
    2004). `form` gives the form under which a term is kept and looked for, such as `root`.
    """

    def __init__(
        self, k1: float = 1.2, b: float = 0.75, heading_weight: int = 2, form: Callable[[str], str] | None = None
    ) -> None:
        self._k1 = k1
        self._b = b
        self._heading_weight = heading_weight
        self._form = form or str
        self._lengths = array("I")
        self._postings: dict[str, _Postings] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, text: str, heading: str = "") -> int:
        """Index one more document; its number."""
        counts = Counter(map(self._form, terms(text)))
        for term in map(self._form, terms(heading)) if heading else ():
            counts[term] += self._heading_weight
        doc = len(self._lengths)
        self._lengths.append(counts.total())
        for term, count in counts.items():
            postings = self._postings.get(term)
            if postings is None:
                postings = self._postings[term] = _Postings(array("I"), array("I"))
            postings.docs.append(doc)
            postings.counts.append(count)
        return doc

    def search(self, query: str, k: int, visible: Mask | None = None) -> list[tuple[int, float]]:
        """The `k` best documents and their scores, best first, equal scores in order of document."""
        return best(self.scores(query, visible), k)[:k]

    def scores(self, query: str, visible: Mask | None = None) -> Scores:
        """Of every document its score, zero where it is not visible or holds no term of the query.

        Numbers of documents, document frequencies and the average length are those of the documents for
        which `visible` is true. Of a query of more than MAX_QUERY_TERMS distinct terms the rarest count.
        """
        scores = np.zeros(len(self))
        # Sums of whole numbers are exact, and each score is summed in one order of terms: the same on any machine.
        lengths = np.frombuffer(self._lengths, np.uint32) if len(self) else np.zeros(0, np.uint32)
        docs = len(self) if visible is None else int(np.count_nonzero(visible))
        total = int(lengths.sum(dtype=np.int64) if visible is None else lengths.sum(dtype=np.int64, where=visible))
        if not total:
            return scores
        flat, steep = self._k1 * (1 - self._b), self._k1 * self._b * docs / total
        for frequency, term in self._rarest(query, visible):
            found, counts = self._visible(term, visible)
            weight = (self._k1 + 1) * log(1 + (docs - frequency + 0.5) / (frequency + 0.5))
            scores[found] += weight * counts / (counts + (flat + steep * lengths[found]))
        return scores

    def _rarest(self, query: str, visible: Mask | None) -> list[tuple[int, str]]:
        """The query's terms and in how many visible documents each stands, rarest first, ties in order of term."""
        found: list[tuple[int, str]] = []
        for term in dict.fromkeys(map(self._form, query_terms(query))):
            if (postings := self._postings.get(term)) is not None:
                frequency = len(postings.docs) if visible is None else len(self._visible(term, visible)[0])
                if frequency:
                    found.append((frequency, term))
        return sorted(found)[:MAX_QUERY_TERMS]

    def _visible(self, term: str, visible: Mask | None) -> "tuple[NDArray[np.uint32], NDArray[np.uint32]]":
        """The visible documents that hold a term, and how often each does. Views: not to be kept while adding."""
        postings = self._postings[term]
        docs, counts = np.frombuffer(postings.docs, np.uint32), np.frombuffer(postings.counts, np.uint32)
        if visible is None:
            return docs, counts
        seen = visible[docs]
        return docs[seen], counts[seen]


class _Postings(NamedTuple):
    """Documents that hold a term, increasing, and how often each does."""

    docs: "array[int]"
    counts: "array[int]"


def best(scores: Scores, k: int) -> list[tuple[int, float]]:
    """The `k` best of these with scores above zero, rounded to six digits, best first, equal ones by number.

    What ties with the last of them is there too, so that a caller can break ties by content.
    """
    if k <= 0:
        return []
    docs = np.flatnonzero(scores > 0.0)
    if len(docs) > k:
        floor = np.partition(scores[docs], len(docs) - k)[len(docs) - k] - _ROUNDING
        docs = docs[scores[docs] >= floor]
    rounded = np.round(scores[docs], 6)
    order = np.argsort(-rounded, kind="stable")
    ranked = [(int(docs[at]), float(rounded[at])) for at in order]
    return ranked if len(ranked) <= k else [(doc, score) for doc, score in ranked if score >= ranked[k - 1][1]]
