"""How `reader` answers a question from passages: the pure part of its strategy.

Owns which lines of a passage a child reads, the child's prompt, and how the children's replies are weighed
against each other. Never calls a model, never searches, never looks at a run: the agent does that.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import log

import msgspec

from treering.memory.lexical import query_terms, terms
from treering.runtime.engine import Message

EXCERPT_CHARS = 400

class Unit(msgspec.Struct, frozen=True):
    """A sentence or a line, `text[start:end]`, and the short line that introduces it (or an empty span)."""

    start: int
    end: int
    lead_start: int = 0
    lead_end: int = 0


_PARAGRAPH = re.compile(r"[^\s].*?(?=\n[ \t]*\n|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”')]{0,3}\s+(?=[\"“(*A-Z_\[])")
_CLOSED = re.compile(r"[.!?:;,][\"”')]{0,3}$")
_TABLE = re.compile(r"^\s*(?:[|+]|>>>|\.\.\. )|::=", re.MULTILINE)
_ITEM = re.compile(r"[*•+|>-]")
_LEAD_CHARS = 110


def units(text: str) -> list[Unit]:
    """Sentences of prose, lines of tables and code, each with the line it stands under, in order.

    A lead is a short line without a full stop above text that is indented deeper: a term and its definition.
    """
    found: list[Unit] = []
    leads: list[tuple[int, int, int]] = []
    for match in _PARAGRAPH.finditer(text):
        start, end = match.start(), match.end()
        indent = start - (text.rfind("\n", 0, start) + 1)
        body = text[start:end].rstrip()
        end = start + len(body)
        while leads and leads[-1][0] >= indent:
            leads.pop()
        lead = leads[-1][1:] if leads else (0, 0)
        if len(body) <= _LEAD_CHARS and body.count("\n") < 2 and not _CLOSED.search(body) and not _ITEM.match(body):
            leads.append((indent, start, end))
            found.append(Unit(start, end, *lead))
            continue
        gaps = re.finditer(r"\n", body) if _TABLE.search(body) else _SENTENCE_END.finditer(body)
        at = 0
        for gap in gaps:
            if body[at : gap.start()].strip():
                found.append(Unit(start + at, start + gap.start(), *lead))
            at = gap.end()
        found.append(Unit(start + at, end, *lead))
    return found


class Excerpt(msgspec.Struct, frozen=True):
    """The part of a passage that a child reads: `passage[start:end]`, after its lead if that stands elsewhere.

    `coverage` is the share of the question's term weight that stands in it or, at half, in the heading.
    """

    start: int
    end: int
    text: str
    coverage: float


_SUFFIXES = ("ation", "ition", "ing", "ion", "ed", "es", "er", "s", "ly")


def root(term: str) -> str:
    """A term without its inflection, roughly, so that `deletes` meets `deleted`; names stay as they are."""
    if "_" in term or not term.isalpha():
        return term
    for suffix in _SUFFIXES:
        if term.endswith(suffix) and len(term) - len(suffix) >= 4:
            term = term[: -len(suffix)]
            break
    if len(term) > 4 and term[-1] == term[-2]:
        term = term[:-1]
    return term[:-1] if len(term) > 3 and term[-1] in "ey" else term


def roots(text: str) -> set[str]:
    return {root(term) for term in terms(text)}


def term_weights(question: str, passages: Iterable[str]) -> dict[str, float]:
    """Weight of each of the question's terms: the rarer among the recalled passages, the heavier."""
    wanted = [root(term) for term in query_terms(question)]
    bags = [roots(passage) for passage in passages]
    return {term: log(1 + (len(bags) + 1) / (0.5 + sum(term in bag for bag in bags))) for term in wanted}


def coverage(weights: Mapping[str, float], text: str, heading: str = "") -> float:
    total = sum(weights.values())
    here, above = roots(text), roots(heading)
    got = sum(w if t in here else w / 2 if t in above else 0.0 for t, w in weights.items())
    return got / total if total else 0.0


def excerpt(weights: Mapping[str, float], passage: str, heading: str = "", max_chars: int = EXCERPT_CHARS) -> Excerpt:
    """The run of sentences, at most `max_chars` long, that covers most of the question; the first of equals."""
    best: Excerpt | None = None
    cut = units(passage)
    for first, unit in enumerate(cut):
        end = unit.end
        for later in cut[first + 1 :]:
            if later.end - unit.start > max_chars:
                break
            end = later.end
        lead = passage[unit.lead_start : unit.lead_end]
        text = passage[unit.start : end]
        if lead:
            text = f"{lead}\n{text}"
        text = "\n".join(line.strip() for line in text.splitlines() if line.strip())
        found = Excerpt(unit.start, end, text, coverage(weights, text, heading))
        if best is None or found.coverage > best.coverage + 1e-9:
            best = found
        if cut[-1].end <= end:
            break
    return best or Excerpt(0, len(passage), passage, coverage(weights, passage, heading))
