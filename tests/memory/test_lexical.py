"""Lexical recall: terms, BM25 against a plain implementation of it, and the bounds of a search."""

from collections import Counter
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.memory.lexical import query_terms, root, stem, terms
from treering.memory.ranking import MAX_QUERY_TERMS, LexicalIndex, best

VOCABULARY = ["light", "parrot", "keeper", "ship", "the", "snake_case", "camelCase", "lamp", "tide", "a"]
TEXTS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


def plain_bm25(docs: list[tuple[str, str]], query: str, k: int, visible: list[bool]) -> list[tuple[int, float]]:
    """The formula as it is printed, over the visible documents."""
    counts = {d: Counter(terms(text) + 2 * terms(heading)) for d, (text, heading) in enumerate(docs) if visible[d]}
    if not counts:
        return []
    average = sum(count.total() for count in counts.values()) / len(counts)
    scores: dict[int, float] = {}
    for term in query_terms(query):
        df = sum(term in count for count in counts.values())
        idf = log(1 + (len(counts) - df + 0.5) / (df + 0.5))
        for d, count in counts.items():
            if tf := count[term]:
                norm = 1.2 * (0.25 + 0.75 * count.total() / average)
                scores[d] = scores.get(d, 0.0) + idf * tf * 2.2 / (tf + norm)
    ranked = sorted((-round(score, 6), d) for d, score in scores.items())
    return [(d, -score) for score, d in ranked[:k]]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=30), TEXTS, st.integers(1, 5), st.integers(0, 3))
def test_a_search_is_bm25_over_what_is_visible(texts: list[tuple[str, str]], query: str, k: int, hidden: int) -> None:
    """Pruned or not, all visible or some: the ranking is that of the formula."""
    index = LexicalIndex()
    for text, heading in texts:
        index.add(text, heading)
    visible = [doc % 4 != hidden for doc in range(len(texts))]
    found, expected = index.search(query, k, np.array(visible, bool)), plain_bm25(texts, query, k, visible)
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-6)
    assert [doc for doc, _ in found] == [doc for doc, _ in expected]
    assert index.search(query, k) == index.search(query, k, np.ones(len(texts), bool))


def test_what_cannot_be_seen_changes_nothing() -> None:
    """An index with hidden documents answers like one that never held them."""
    seen, both = LexicalIndex(), LexicalIndex()
    for doc in range(40):
        text = f"lamp {'tide ' * (doc % 5)} ship{doc % 3}"
        both.add(text)
        both.add("lamp lamp tide ship0 ship1")
        seen.add(text)
    visible = np.arange(80) % 2 == 0
    for query in ("lamp", "tide ship0", "ship1 lamp tide"):
        found = both.search(query, 7, visible)
        assert [(doc // 2, score) for doc, score in found] == seen.search(query, 7)


def test_frequent_terms_beside_a_rare_one_keep_the_answer() -> None:
    """With a rare term that decides, the scores are those of the formula."""
    index = LexicalIndex()
    docs = []
    for doc in range(500):
        docs.append(
            ("lamp " * (doc % 3 + 1) + "tide " * (doc % 7) + ("parrot " * (doc % 4) if doc > 480 else ""), "")
        )
        index.add(docs[doc][0])
    query = "parrot lamp tide"
    assert index.search(query, 5) == plain_bm25(docs, query, 5, [True] * 500)


def test_equal_scores_come_in_the_order_of_documents() -> None:
    """Ties are broken by number, never by hash or insertion."""
    index = LexicalIndex()
    for _ in range(3):
        index.add("the same words")
    assert [doc for doc, _ in index.search("words", 2)] == [0, 1]
    assert [doc for doc, _ in best(index.scores("words"), 2)] == [0, 1, 2]  # the tie is the caller's to break


def test_a_heading_counts_more_than_the_text() -> None:
    """Of two equal documents the one whose heading has the term is first."""
    index = LexicalIndex()
    index.add("parrot lamp ship")
    index.add("lamp ship tide", heading="parrot")
    assert [doc for doc, _ in index.search("parrot", 2)] == [1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("snake_case", ["snake_case", "snake", "case"]),
        ("getHTTPResponse", ["gethttpresponse", "get", "http", "response"]),
        ("os.path.join()", ["os.path.join", "os", "path", "join"]),
        ("the keeper's parrots", ["the", "keeper", "parrot"]),
        ("don’t don't", ["dont", "dont"]),
        ("__init__", ["init"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("中文字", ["中文字", "中文", "文字"]),
        ("3.14", ["3.14", "3", "14"]),
        ("_ -- ...", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    """Identifiers give themselves and their parts; case, accents' form and plurals do not matter."""
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("parrots", "parrot"),
        ("queries", "query"),
        ("classes", "class"),
        ("caches", "cache"),
        ("matches", "match"),
        ("indexes", "index"),
        ("hashes", "hash"),
        ("status", "status"),
        ("does", "does"),
        ("gas", "gas"),
    ],
)
def test_stem(plural: str, singular: str) -> None:
    """Plural and singular meet."""
    assert stem(plural) == singular == stem(singular)


def test_a_query_of_stop_words_uses_them() -> None:
    """Stop words are left out only where something else is asked for."""
    index = LexicalIndex()
    index.add("to be or not to be")
    index.add("a parrot")
    assert query_terms("Who was the keeper of this parrot?") == ["keeper", "parrot"]
    assert [doc for doc, _ in index.search("to be", 5)] == [0]
    assert [doc for doc, _ in index.search("not a parrot", 5)] == [1]


def test_queries_that_find_nothing() -> None:
    """Empty queries, unknown terms, no documents, nothing visible, no answers wanted."""
    index = LexicalIndex()
    assert index.search("lamp", 5) == []
    index.add("lamp")
    index.add("")
    for query in ("", "  ", "...", "parrot"):
        assert index.search(query, 5) == []
    assert index.search("lamp", 0) == []
    assert index.search("lamp", 5, np.zeros(2, bool)) == []
    assert len(index) == 2


def test_a_huge_query_is_cut_to_its_rarest_terms() -> None:
    """Of a million characters only the rarest terms count, whatever their order."""
    index = LexicalIndex()
    names = [f"n{at}" for at in range(2 * MAX_QUERY_TERMS)]
    for doc, name in enumerate(names):
        index.add(" ".join(["tide", *names[: doc % 3], name]))
    query = " ".join(names) + " tide" * 200_000
    found = index.search(query, 500)
    assert found == index.search(" ".join(reversed(query.split())), 500)
    assert len(found) == MAX_QUERY_TERMS
    assert not {0, 1} & {doc for doc, _ in found}


def test_terms_meet_in_the_form_that_an_index_is_given() -> None:
    """With their roots as the form, inflections meet; names and numbers stay as they are."""
    index = LexicalIndex(form=root)
    index.add("She was painting the harbour")
    index.add("snake_cases 1999")
    for query in ("painted", "paints", "harbours"):
        assert [doc for doc, _ in index.search(query, 2)] == [0]
    assert root("snake_cases") == "snake_cases"
    assert root("1999") == "1999"
