"""What leaves a window, and what a summary lost."""

import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from treering.events.catalogue import Entry
from treering.memory.compaction import choose_span, extract, measure_loss, salient_terms
from treering.memory.windows import WindowEntry


def _entry(op: int, index: int, tokens: int, pinned: bool = False) -> WindowEntry:
    return WindowEntry(op, index, Entry("user", (f"{op}.{index}",), tokens, pinned))


def test_the_oldest_exchanges_leave_whole_and_pins_stay():
    """An answer is never parted from its question; what is pinned stays verbatim."""
    entries = [_entry(1, 0, 10, pinned=True), _entry(1, 1, 10), _entry(1, 2, 10), _entry(2, 0, 10), _entry(2, 1, 10)]
    span = choose_span(entries, 30)
    assert span is not None
    assert [(item.op, item.index) for item in span.entries] == [(1, 1), (1, 2)]
    assert span.tokens == 20


def test_nothing_leaves_where_all_is_pinned():
    """A window of pins cannot be compacted."""
    assert choose_span([_entry(1, 0, 10, pinned=True)], 0) is None


def test_the_loss_names_what_is_missing():
    """Names, numbers and code that the summary lacks, in the order of the span."""
    loss = measure_loss("Captain Varga sold 17 boats to Ines by parse_args().", "Varga sold boats.")
    assert "17" in loss.missing
    assert "Ines" in loss.missing
    assert "Varga" not in loss.missing
    assert 0 < loss.score < 1


def test_a_text_loses_nothing_against_itself():
    """The score of a verbatim copy is zero."""
    text = "The harbour of Split, 1931: see `rudder` and load_cargo."
    assert measure_loss(text, text).score == 0.0
    assert salient_terms(text)


@given(st.text(max_size=400), st.integers(min_value=1, max_value=200))
def test_an_extract_is_never_longer_than_asked(text, room):
    """Whatever the text, the extract fits."""
    assert len(extract(text, room)) <= room


def test_the_newest_exchange_is_spared_where_the_rest_fits():
    """It leaves only where nothing else makes room enough."""
    entries = [_entry(op, index, 10) for op in (1, 2) for index in (0, 1)]
    spared = choose_span(entries, 0, spare_tokens=20)
    assert spared is not None
    assert {item.op for item in spared.entries} == {1}
    taken = choose_span(entries, 0, spare_tokens=19)
    assert taken is not None
    assert {item.op for item in taken.entries} == {1, 2}
    assert choose_span(entries[2:], 0, spare_tokens=20) is not None


def _greedy(text: str, room: int) -> str:
    """The definition of an extract, at the cost of looking at every sentence each time."""
    sentences = [sentence.strip() for sentence in text.split("\n") if sentence.strip()]
    terms = {at: set(salient_terms(sentence)) for at, sentence in enumerate(sentences)}
    weights = Counter(term for found in terms.values() for term in found)
    covered: set[str] = set()
    chosen: list[int] = []
    while terms:
        gains = {
            at: sum(1.0 / weights[term] for term in sorted(found - covered)) / (20 + len(sentences[at]))
            for at, found in terms.items()
        }
        best = max(sorted(gains), key=lambda at: (gains[at], -at))
        found = terms.pop(best)
        if gains[best] <= 0.0:
            break
        if len(sentences[best]) + 1 <= room:
            chosen.append(best)
            covered |= found
            room -= len(sentences[best]) + 1
    return " ".join(sentences[at] for at in sorted(chosen))


@given(
    st.lists(st.lists(st.sampled_from(["Anna", "Split", "1931", "load_cargo", "a", "b"]), min_size=1), max_size=12)
)
def test_an_extract_is_the_greedy_cover(lines):
    """Sentence by sentence what the plain definition takes."""
    text = "\n".join(" ".join(words) for words in lines)
    wanted = _greedy(text, len(text) // 2)
    assert extract(text, len(text) // 2) == (wanted or text[: len(text) // 2].rstrip())


def test_an_extract_looks_at_few_sentences_again():
    """Of a long text too: the work grows with the text, not with its square."""
    text = "\n".join(f"Sentence about Alpha{at} and value {at * 7} of item_{at} here." for at in range(3000))
    looked = 0

    def count(frame, event, _):
        nonlocal looked
        looked += event == "call" and frame.f_code.co_name == "gain"

    sys.setprofile(count)
    try:
        extract(text, len(text) // 3)
    finally:
        sys.setprofile(None)
    assert looked < 5 * 3000
