"""Which part of a passage speaks of a question: sentences, and the run of them that covers most of it.

Owns the division of a passage into sentences and lines, the weight of a question's terms, and the choice of an
excerpt. Never calls a model. Invariant: everything here is a function of its arguments, so that replay takes the
same path.
"""

import re
from collections.abc import Mapping, Sequence
from math import log

import msgspec

from treering.memory.lexical import query_terms, root, terms

__all__ = [
    "EXCERPT_CHARS",
    "Excerpt",
    "Sentence",
    "Text",
    "asked_roots",
    "best_excerpt",
    "is_lead",
    "roots",
    "sentences",
    "share",
    "term_weights",
]

EXCERPT_CHARS = 400
_LEAD_CHARS = 110
_PARAGRAPH = re.compile(r"\S.*?(?=\n[ \t]*\n|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”')]{0,3}\s+(?=[\"“(*A-Z_\[])")
_CLOSED = re.compile(r"[.!?:;,][\"”')]{0,3}$")
_TABLE = re.compile(r"^\s*(?:[|+]|>>>|\.\.\. )|::=", re.MULTILINE)
_ITEM = re.compile(r"[*•+|>-]")


class Text(msgspec.Struct, frozen=True):
    """A passage or a memory as recall gave it: its text, the title above it, and its score there."""

    text: str
    heading: str = ""
    score: float = 0.0


class Sentence(msgspec.Struct, frozen=True):
    """A sentence, or a line of a table or of code: `text[start:end]`.

    `text[lead_start:lead_end]` is the line that introduces it (a definition's term); an empty span if none does.
    `prose` says whether it is a sentence.
    """

    start: int
    end: int
    lead_start: int = 0
    lead_end: int = 0
    prose: bool = True


class Excerpt(msgspec.Struct, frozen=True):
    """What a child reads of text number `of`: `text[start:end]`, after its lead if that is not a part of it.

    `shown` is the two joined by a newline; `coverage` the share of the question's weight that it covers, 0 to 1.
    """

    of: int
    heading: str
    start: int
    end: int
    lead_start: int
    lead_end: int
    shown: str
    coverage: float


def roots(text: str) -> set[str]:
    """The terms of a text without their inflections."""
    return {root(term) for term in terms(text)}


def asked_roots(question: str) -> list[str]:
    """What a question asks about: its terms without inflections and stop words, each once, in their order."""
    return list(dict.fromkeys(root(term) for term in query_terms(question)))


def term_weights(question: str, texts: Sequence[Text]) -> dict[str, float]:
    """The weight of each of the question's terms: the rarer among the recalled texts, the heavier."""
    bags = [roots(text.text) for text in texts]
    most = len(bags) + 1
    return {term: log(1 + most / (0.5 + sum(term in bag for bag in bags))) for term in asked_roots(question)}


def share(weights: Mapping[str, float], *layers: tuple[set[str], float]) -> float:
    """The share of the weights whose terms stand in a layer, times the factor of the first layer that has them."""
    got = 0.0
    for term, weight in weights.items():
        got += weight * next((factor for found, factor in layers if term in found), 0.0)
    total = sum(weights.values())
    return got / total if total else 0.0


def sentences(text: str) -> list[Sentence]:
    """Sentences of prose and lines of tables and code, each with the line it stands under, in order.

    A lead is a short line without a full stop above text that is indented deeper: a term and its definition.
    """
    found: list[Sentence] = []
    leads: list[tuple[int, int, int]] = []
    for match in _PARAGRAPH.finditer(text):
        start = match.start()
        body = match[0].rstrip()
        end = start + len(body)
        indent = start - (text.rfind("\n", 0, start) + 1)
        while leads and leads[-1][0] >= indent:
            leads.pop()
        lead = leads[-1][1:] if leads else (0, 0)
        if is_lead(body):
            leads.append((indent, start, end))
            found.append(Sentence(start, end, *lead, prose=False))
            continue
        table = _TABLE.search(body) is not None
        at = 0
        for gap in re.finditer(r"\n", body) if table else _SENTENCE_END.finditer(body):
            if body[at : gap.start()].strip():
                found.append(Sentence(start + at, start + gap.start(), *lead, prose=not table))
            at = gap.end()
        found.append(Sentence(start + at, end, *lead, prose=not table))
    return found


def is_lead(line: str) -> bool:
    """Whether a paragraph is a line that introduces what is indented below it."""
    return len(line) <= _LEAD_CHARS and line.count("\n") < 2 and not _CLOSED.search(line) and not _ITEM.match(line)


def best_excerpt(weights: Mapping[str, float], of: int, passage: Text) -> Excerpt:
    """The run of sentences, with their lead, that covers most of the question; the first of equals."""
    above = roots(passage.heading)
    title = passage.heading.rpartition(" > ")[2]
    text = passage.text
    best: Excerpt | None = None
    units = sentences(text)
    for first, unit in enumerate(units):
        end = unit.end
        for later in units[first + 1 :]:
            if later.end - unit.start > EXCERPT_CHARS:
                break
            end = later.end
        lead = text[unit.lead_start : unit.lead_end]
        shown = f"{lead}\n{text[unit.start : end]}" if lead else text[unit.start : end]
        covered = round(share(weights, (roots(shown), 1.0), (above, 0.5)), 6)
        if best is None or covered > best.coverage:
            best = Excerpt(of, title, unit.start, end, unit.lead_start, unit.lead_end, shown, covered)
        if end >= units[-1].end:
            break
    return best or Excerpt(of, title, 0, len(text), 0, 0, text, 0.0)
