"""Passages: what is kept together, where cuts fall, and the laws that hold for any text."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treering.memory.passages import Passage, cut, estimate_tokens

WORDS = "The keeper of the light kept a grey parrot and a ledger of every ship that passed the point. "
MARKUP = ["# One\n", "## Two\n", "Three\n=====\n", "Four\n----\n", "****\nFive\n****\n", "2.1 Six\n", "Chapter 7\n"]
PIECES = [
    *MARKUP,
    "\n",
    "\n\n",
    "   ",
    "\t",
    "word ",
    "A sentence. ",
    "e.g. Mr. Varga. ",
    WORDS,
    "- item\n",
    "1. item\n",
    "```\n",
    "~~~\n",
    "    code = 1\n",
    "def f():\n",
    "}\n",
    "x" * 300,
    "中文。",
    "é",
    "e\u0301\u0302",
    "👩\u200d👩\u200d👧",
    "🇩🇪",
    "한국어",
    "\ud83d\ude00",
    "\u3000",
    "...",
    "_" * 40,
    "a_b.c",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=40).map("".join)


def whole(passages: list[Passage], text: str) -> list[str]:
    return [text[passage.start : passage.end] for passage in passages]


@given(TEXTS, st.integers(1, 60), st.sampled_from([None, True, False]))
@example("a\u0301" * 400, 3, False)
@example("word " * 100 + "\n \n    deep", 7, None)
def test_passages_cover_all_text_in_order_and_within_the_size(text: str, max_tokens: int, code: bool | None) -> None:
    """Whatever the text: nothing visible is lost or doubled, and only a lone grapheme exceeds the size."""
    passages = cut(text, max_tokens, code=code)
    covered = 0
    for passage in passages:
        assert covered <= passage.start < passage.end <= len(text)
        assert not text[covered : passage.start].strip()
        piece = text[passage.start : passage.end]
        assert piece == piece.rstrip()
        assert piece.strip()
        assert estimate_tokens(piece) <= max_tokens or len(piece) <= 64 + 9
        covered = passage.end
    assert not text[covered:].strip()
    assert passages == cut(text, max_tokens, code=code)


@given(TEXTS, TEXTS)
def test_the_estimate_of_lines_is_the_sum_of_the_estimates(first: str, second: str) -> None:
    """Cutting at a line never makes a text larger by the estimate."""
    assert estimate_tokens(first + "\n" + second) <= estimate_tokens(first + "\n") + estimate_tokens(second)


@pytest.mark.parametrize("heading", MARKUP)
def test_a_heading_goes_with_what_follows_it(heading: str) -> None:
    """However large the paragraph below a heading, the heading is not left alone."""
    text = f"{WORDS}\n\n{heading}\n{WORDS * 12}"
    passages = cut(text, 60)
    pieces = whole(passages, text)
    title = re.sub(r"[#=*\n-]", "", heading).strip()
    opening = next(piece for piece in pieces if title in piece)
    assert "keeper" in opening
    assert not passages[0].heading
    assert {passage.heading for passage in passages[1:]} == {title}


def test_the_trail_of_headings_follows_their_levels() -> None:
    """A deeper heading adds to the trail; an equal one takes the place of the last."""
    text = "# A\n\none\n\n## B\n\ntwo\n\n### C\n\nthree\n\n## D\n\nfour\n"
    assert [passage.heading for passage in cut(text)] == ["A", "A > B", "A > B > C", "A > D"]


def test_underlines_nest_in_the_order_in_which_they_appear() -> None:
    """reStructuredText gives its underlines no fixed levels."""
    text = "Top\n***\n\na\n\nMid\n===\n\nb\n\nLow\n---\n\nc\n\nMid 2\n=====\n\nd\n"
    assert [passage.heading for passage in cut(text)] == ["Top", "Top > Mid", "Top > Mid > Low", "Top > Mid 2"]


def test_a_numbered_list_is_not_a_row_of_headings() -> None:
    """Numbered lines that stand alone are headings only if text comes between them."""
    items = "1. Buy bread\n\n2. Feed the parrot\n\n3. Light the lamp\n"
    assert [passage.heading for passage in cut(items)] == [""]
    sections = "1. Scope\n\nThis is that.\n\n1.1 Terms\n\nThat is this.\n"
    assert [passage.heading for passage in cut(sections)] == ["1. Scope", "1. Scope > 1.1 Terms"]


def test_headings_inside_code_are_code() -> None:
    """A comment in a fence or an indented block opens no section."""
    text = "Intro:\n\n```sh\n# not a heading\nmake\n```\n\n    # nor this\n    run\n"
    (passage,) = cut(text)
    assert passage == Passage(0, len(text) - 1, "")


def test_paragraphs_stay_whole_and_small_neighbours_are_joined() -> None:
    """Three paragraphs of which two fit together give two passages."""
    paragraph = WORDS * 4
    text = "\n\n".join([paragraph.strip()] * 3)
    pieces = whole(cut(text, 200), text)
    assert [piece.count(WORDS.strip()) for piece in pieces] == [8, 4]


def test_a_long_paragraph_is_cut_after_sentences_evenly() -> None:
    """Each piece of a paragraph ends with a full stop that ends a sentence, and none is a crumb."""
    text = "Mr. Varga kept a light, e.g. at night. " * 30
    pieces = whole(cut(text, 100), text)
    assert len(pieces) > 3
    assert all(piece.startswith("Mr.") and piece.endswith("night.") for piece in pieces)
    assert min(map(len, pieces)) > max(map(len, pieces)) / 2


def test_an_indented_block_stays_with_the_paragraph_before_it() -> None:
    """It is not parted from it by the size of what stands before both."""
    text = f"{WORDS * 6}\n\nThe form is:\n\n   if __debug__:\n       raise AssertionError\n"
    assert whole(cut(text, 130), text)[-1].startswith("The form is:")


def test_source_code_is_cut_at_top_level_definitions() -> None:
    """Functions stay whole; what is inside a class that is too large names the class."""
    function = "def f{0}(x):\n    y = x + 1\n\n    return y * {0}\n"
    method = "    def m{0}(self):\n        y = self.x + 1\n\n        return y * {0}\n"
    text = "\n\n".join(function.format(n) for n in range(9)) + "\n\nclass Light:\n    x = 1\n\n"
    text += "\n".join(method.format(n) for n in range(9))
    passages = cut(text, 60)
    for piece in whole(passages, text):
        assert piece.lstrip().startswith(("def ", "class "))
    inside = [passage for passage in passages if passage.start > text.index("def m1")]
    assert {passage.heading for passage in inside} == {"class Light"}


def test_no_grapheme_is_cut() -> None:
    """A word far too long is cut between clusters only."""
    for cluster in ("e\u0301", "👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🇩🇪", "\ud83d\ude00"):
        text = cluster * 200
        passages = cut(text, 20)
        assert len(passages) > 1
        assert all(passage.start % len(cluster) == 0 for passage in passages)


def test_nothing_to_cut_gives_no_passages() -> None:
    """Blank texts have none, and a size that is not positive is refused."""
    assert cut("") == cut(" \n\t\n") == []
    with pytest.raises(ValueError, match="at least 1"):
        cut("text", 0)
