"""Lexical recall: how text becomes terms, and an inverted index that ranks documents by BM25.

Owns tokenisation and ranking. It knows nothing of items, sources or views: a document is a number, and what
may be seen is a function that its caller passes in.

Invariant: a search is a function of the visible documents and the query alone; documents that cannot be seen
change neither a score nor an order.
"""

import re
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from heapq import nlargest
from itertools import compress
from math import log
from typing import NamedTuple

__all__ = ["MAX_QUERY_TERMS", "STOP_WORDS", "LexicalIndex", "query_terms", "stem", "terms"]

MAX_QUERY_TERMS = 64

_STOP_WORDS = (
    "a an and any are as at be been but by can could did do does for from had has have he her his how i if in into"
    " is it its me my no not of on or our please she so some tell than that the their them then there these they"
    " this to was we were what when where which who whom whose why will with would you your"
)

_WORD = re.compile(r"\w+(?:[.'’]\w+)*")
_PART = re.compile(r"[._]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_APOSTROPHE = re.compile(r"['’]")
_POSSESSIVE = re.compile(r"['’][sS]$")
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2,}")
_SIBILANT = re.compile(r"(ss|x|sh|[tnr]ch|[eo]ach)es$")
_ROUNDING = 2e-6  # scores that round to the same six digits are closer than this


def terms(text: str) -> list[str]:
    """Index terms of `text` in order, repeats included.

    A word is case-folded and stemmed. `snake_case`, `camelCase` and dotted names give themselves whole, then
    their parts; runs of ideographs give their pairs, since nothing else parts their words.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    found: list[str] = []
    for word in _WORD.findall(text):
        found.extend(_terms_of(word))
    return found


def query_terms(query: str) -> list[str]:
    """Distinct terms of `query` in order of first appearance, without stop words unless it has no others."""
    distinct = list(dict.fromkeys(terms(query)))
    return [term for term in distinct if term not in STOP_WORDS] or distinct


def stem(word: str) -> str:
    """Singular of a lower-case English word, roughly: the S-stemmer (Harman 1991), and `-sses`, `-xes`, `-shes`."""
    if len(word) < 4 or word[-1] != "s" or word[-2] in "us":
        return word
    if _SIBILANT.search(word):
        return word[:-2]
    if word.endswith("ies") and word[-4] not in "ea":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] in "aeo":
        return word
    return word[:-1]


STOP_WORDS = frozenset(stem(word) for word in _STOP_WORDS.split())


class LexicalIndex:
    """An append-only inverted index in memory. Not a record: it can be rebuilt from the texts at any time.

    Ranks by BM25 (Robertson and Zaragoza 2009), with the logarithm's argument raised by one so that a term
    in more than half of the documents still counts for something. A heading is a field that counts
    `heading_weight` times (Robertson, Zaragoza and Taylor 2004).
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75, heading_weight: int = 2) -> None:
        self._k1 = k1
        self._b = b
        self._heading_weight = heading_weight
        self._docs: list[int] = []
        self._lengths = array("I")
        self._total_length = 0
        self._postings: dict[str, _Postings] = {}
        self._last_norms: tuple[int, float, list[float]] = (0, 0.0, [])

    def __len__(self) -> int:
        return len(self._docs)

    def add(self, doc: int, text: str, heading: str = "") -> None:
        """Index a document. Raises ValueError unless `doc` is above all numbers that were added before."""
        if self._docs and doc <= self._docs[-1]:
            raise ValueError(f"documents are added in increasing order: {doc} after {self._docs[-1]}")
        counts = Counter(terms(text))
        for term in terms(heading) if heading else ():
            counts[term] += self._heading_weight
        at = len(self._docs)
        self._docs.append(doc)
        self._lengths.append(counts.total())
        self._total_length += counts.total()
        for term, count in counts.items():
            postings = self._postings.get(term)
            if postings is None:
                postings = self._postings[term] = _Postings(array("I"), array("I"))
            postings.rows.append(at)
            postings.counts.append(count)

    def search(self, query: str, k: int, visible: Callable[[int], bool] | None = None) -> list[tuple[int, float]]:
        """The `k` best documents and their scores, best first, equal scores in order of document.

        Numbers of documents, document frequencies and the average length are those of the documents for
        which `visible` is true. Scores are rounded to six digits. Of a query of more than MAX_QUERY_TERMS
        distinct terms the rarest count. A document that holds no term of the query is never an answer.
        """
        mask = None if visible is None else bytes(map(bool, map(visible, self._docs)))
        visible_docs = len(self._docs) if mask is None else mask.count(1)
        wanted = self._weighted(query, mask, visible_docs) if k > 0 else []
        if not wanted:
            return []
        total = self._total_length if mask is None else sum(compress(self._lengths, mask))
        average = total / visible_docs
        scores = _best(wanted, self._norms(average), mask, k)
        ranked = sorted((-round(score, 6), self._docs[at]) for at, score in scores)
        return [(doc, -score) for score, doc in ranked[:k]]

    def _weighted(self, query: str, mask: bytes | None, visible_docs: int) -> "list[_Weighted]":
        """The query's terms with their postings and weights, rarest first, ties in order of term."""
        found: list[tuple[int, str]] = []
        for term in query_terms(query):
            if (postings := self._postings.get(term)) is not None:
                frequency = len(postings.rows) if mask is None else sum(map(mask.__getitem__, postings.rows))
                if frequency:
                    found.append((frequency, term))
        found.sort()
        return [
            _Weighted(
                self._postings[term],
                (self._k1 + 1) * log(1 + (visible_docs - frequency + 0.5) / (frequency + 0.5)),
            )
            for frequency, term in found[:MAX_QUERY_TERMS]
        ]

    def _norms(self, average: float) -> list[float]:
        """For each row what its length adds to a term's count in the denominator."""
        docs, last_average, norms = self._last_norms
        if (docs, last_average) != (len(self._docs), average):
            flat, steep = self._k1 * (1 - self._b), self._k1 * self._b / average
            norms = [flat + steep * length for length in self._lengths]
            self._last_norms = len(self._docs), average, norms
        return norms


class _Postings(NamedTuple):
    """Rows that hold a term, increasing, and how often each does."""

    rows: "array[int]"
    counts: "array[int]"


class _Weighted(NamedTuple):
    postings: _Postings
    weight: float


def _best(wanted: list[_Weighted], norms: list[float], mask: bytes | None, k: int) -> Iterable[tuple[int, float]]:
    """Rows that may be among the `k` best, with their exact scores.

    MaxScore (Turtle and Flood 1995): once the terms to come cannot lift an unseen document to the k-th best
    score so far, they are looked up for the seen ones only, and those that cannot reach it are dropped.
    A score is summed in one order of terms on either path, so that it is the same number.
    """
    bounds = [weight for _, weight in wanted]  # a term never gives more than its weight
    scores: dict[int, float] = {}
    for at, (postings, weight) in enumerate(wanted):
        rest = sum(bounds[at:])
        floor = _floor(scores, k) - _ROUNDING
        if rest < floor:
            scores = {row: score for row, score in scores.items() if score + rest >= floor}
            _look_up(scores, postings, weight, norms)
            continue
        get = scores.get
        pairs: Iterator[tuple[int, int]] = zip(postings.rows, postings.counts, strict=True)
        if mask is not None:
            pairs = compress(pairs, map(mask.__getitem__, postings.rows))
        for row, count in pairs:
            scores[row] = get(row, 0.0) + weight * count / (count + norms[row])
    floor = _floor(scores, k) - _ROUNDING
    return [(row, score) for row, score in scores.items() if score >= floor]


def _floor(scores: dict[int, float], k: int) -> float:
    """The k-th best score so far, or zero while there are fewer."""
    return nlargest(k, scores.values())[-1] if len(scores) >= k else 0.0


def _look_up(scores: dict[int, float], postings: _Postings, weight: float, norms: list[float]) -> None:
    rows, counts = postings
    for row in scores:
        at = bisect_left(rows, row)
        if at < len(rows) and rows[at] == row:
            scores[row] += weight * counts[at] / (counts[at] + norms[row])


@lru_cache(maxsize=1 << 16)
def _terms_of(word: str) -> tuple[str, ...]:
    """Terms of one word as it stands in the text: the whole, then its parts if it has several."""
    word = _POSSESSIVE.sub("", word)
    ideographs = [run[at : at + 2] for run in _IDEOGRAPHS.findall(word) for at in range(len(run) - 1)]
    plain = _APOSTROPHE.sub("", word).strip("_")
    parts = [part.casefold() for name in _PART.split(plain) if name for part in _CAMEL.split(name)]
    if len(parts) < 2:
        return (*(stem(part) for part in parts), *ideographs)
    return (plain.casefold(), *(stem(part) for part in parts), *ideographs)
