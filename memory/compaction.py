"""What leaves a window, what a summary lost, and a summary that needs no model.

Owns the choice of the span, the prompt that asks for a summary, the extractive stand-in and the loss score.
It makes requests and never calls an engine. Invariant: pinned entries stay verbatim, and
the newest exchange where there is room for it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace

import msgspec

from treering.events.catalogue import Loss
from treering.memory.windows import WindowEntry

__all__ = ["SUMMARY_SYSTEM", "Span", "choose_span", "extract", "measure_loss", "salient_terms", "summary_prompt"]

SUMMARY_SYSTEM = (
    "You shorten conversations. Keep every name, number, date, decision, rule and open question. "
    "Write plain sentences and nothing else."
)

_MISSING_LISTED = 40
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SALIENT = re.compile(
    r"`[^`\n]{1,60}`"  # code
    r"|\b\w*\d[\w.,:/-]*"  # numbers, dates, versions
    r"|\b[A-Za-z_]\w*(?:[._]\w+)+"  # dotted and snake-case names
    r"|\b[a-z]+[A-Z]\w*"  # camel case
    r"|\b[A-Z]\w{2,}"  # names and acronyms
    r"|\b[a-z]{9,}\b"  # long words tend to be the rare ones
)
_COMMON = frozenset(
    "The This That These Those There They Their And But For Not With When What Which Who Why How You Your She "
    "Her His Its Are Was Were Has Have Had Can Could Will Would May Might Must Should One Two Also However".split()
)


class Span(msgspec.Struct, frozen=True):
    """The entries chosen to leave, and what they hold."""

    entries: tuple[WindowEntry, ...]
    tokens: int


def choose_span(entries: Sequence[WindowEntry], target_tokens: int, spare_tokens: int = 0) -> Span | None:
    """The oldest unpinned entries whose leaving brings the window to `target_tokens` or less.

    Whole exchanges leave together (all entries of an op), so that an answer is never parted from its question
    or a result from its call. The newest stays if others leave and the rest is at most `spare_tokens`. None if there
    is nothing that may leave.
    """
    ops: dict[int, list[WindowEntry]] = {}
    for item in entries:
        ops.setdefault(item.op, []).append(item)
    total = sum(item.entry.tokens for item in entries)
    left: list[WindowEntry] = []
    for op, group in ops.items():
        if total <= target_tokens or (left and op == entries[-1].op and total <= spare_tokens):
            break
        movable = [item for item in group if not item.entry.pinned]
        left.extend(movable)
        total -= sum(item.entry.tokens for item in movable)
    if not left:
        return None
    return Span(tuple(left), sum(item.entry.tokens for item in left))


def summary_prompt(text: str, max_words: int) -> str:
    """What a model is asked to make a summary of `text`."""
    return f"Shorten this conversation to at most {max_words} words.\n\n{text}\n\nShort version:"


def salient_terms(text: str) -> list[str]:
    """Names, numbers, code and rare terms of a text, each once, in the order of the text."""
    found = dict.fromkeys(match.strip("`.,:;/-") for match in _SALIENT.findall(text))
    return [term for term in found if term and term not in _COMMON]


def measure_loss(span: str, summary: str) -> Loss:
    """What `summary` lacks of `span`, with no model: the share of its salient terms that are not there."""
    terms = salient_terms(span)
    present = summary.casefold()
    missing = [term for term in terms if term.casefold() not in present]
    score = round(len(missing) / len(terms), 4) if terms else 0.0
    return Loss(score, len(terms), tuple(missing[:_MISSING_LISTED]))


def extract(text: str, max_characters: int) -> str:
    """The sentences of `text` that hold most of its salient terms, in their order, up to a length.

    A greedy cover: the sentence that adds most new terms per character is taken first. No model is needed.
    """
    sentences = [sentence.strip() for sentence in _SENTENCE.split(text) if sentence.strip()]
    terms = [salient_terms(sentence) for sentence in sentences]
    weights = Counter(term for found in terms for term in found)
    covered: set[str] = set()

    def gain(index: int) -> float:
        new = sorted(term for term in terms[index] if term not in covered)
        return sum(1.0 / weights[term] for term in new) / (20 + len(sentences[index]))

    # A gain only falls as more is covered, so one that was computed before is a bound (Minoux 1978): the best bound
    # that still holds is the best.
    bounds = [(-gain(index), index) for index in range(len(sentences))]
    heapify(bounds)
    chosen: list[int] = []
    room = max_characters
    while bounds and bounds[0][0] < 0.0:
        bound, index = bounds[0]
        if (now := -gain(index)) > bound:
            heapreplace(bounds, (now, index))
            continue
        heappop(bounds)
        if len(sentences[index]) + 1 <= room:
            chosen.append(index)
            covered.update(terms[index])
            room -= len(sentences[index]) + 1
    if not chosen:
        return text[:max_characters].rstrip()
    return " ".join(sentences[index] for index in sorted(chosen))
