"""Cutting a text into passages: the pieces that are indexed, recalled, read by one agent each, and cited.

Owns where the cuts are. It never copies or changes the text and needs no tokenizer: sizes are estimates, a
few per cent high on English and source code.

Invariant: passages are in order, do not overlap, and hold every character that is not white space; each is
at most the size asked for, unless a single grapheme cluster is larger.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from math import ceil
from typing import NamedTuple

import msgspec

from treering.memory.outline import Block, Kind, definitions, heading_trails, line_start, looks_like_code, outline

__all__ = ["Passage", "cut", "estimate_tokens"]

# Fitted to a byte-level BPE of 49,152 tokens. Nothing here spans a place where a cut may fall, so that the
# estimate of a passage never exceeds the sum over its parts.
_TOKEN = re.compile(r"[A-Za-z]{1,9}|\d|[^\x00-\x7f\s]|_{1,16}|[^\w\s]{1,3}|\n+|[^\S\n]{2,32}")
_WIDE = re.compile(r"[\u2e80-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]")
_WORD = re.compile(r"\S+")
_NEWLINE = re.compile(r"\n+")
_ITEM = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+(?=\S)", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]{0,3}\s+(?=[^\Wa-z_]|[\"'“‘(\[*`])|(?<=[。！？])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|mr|mrs|ms|dr|prof|st|e\.g|i\.e|vs|cf|fig|no|vol|pp?)\.$", re.IGNORECASE
)
_MAX_CLUSTER_CHARS = 64
_MAX_DEPTH = 12


class Passage(msgspec.Struct, frozen=True):
    """`text[start:end]`, and the titles of the headings it stands under, outermost first, joined by ` > `.

    A passage that opens a section holds its own heading in the text and in `heading`, so that all passages
    of a section have the same trail. In source code the trail is the definitions that are open above it.
    """

    start: int
    end: int
    heading: str = ""


class _Piece(NamedTuple):
    """A part of the text that is kept whole if it fits.

    While it is several `blocks`, `level` says how deep they nest; afterwards, how many of `_GRAINS` are spent.
    """

    start: int
    end: int
    tokens: int
    kind: Kind
    level: int = 0
    blocks: tuple[Block, ...] = ()


def cut(text: str, max_tokens: int = 220, *, code: bool | None = None) -> list[Passage]:
    """Passages of `text`, each at most `max_tokens` by `estimate_tokens`. Lines end at a newline.

    Paragraphs, lists, code blocks and top-level definitions stay whole where they fit. A heading goes with
    what follows it; neighbours under one heading are joined up to the size. What is too long is cut at list
    items, sentence ends, lines, words, and last between grapheme clusters (of up to 64 characters, after
    the stream-safe format of UAX #15). `code` says whether this is source code; None guesses.
    Takes time linear in the length of `text`. Raises ValueError if `max_tokens` is not positive.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if code is None:
        code = looks_like_code(text)
    blocks = outline(text, code)
    if code:
        return list(_with_definitions(text, _pack(text, [], blocks, max_tokens)))
    passages: list[Passage] = []
    for trail, headings, body in _sections(text, blocks, max_tokens):
        passages.extend(Passage(start, end, trail) for start, end in _pack(text, headings, body, max_tokens))
    return passages


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` takes in a language model. Pure, linear, within a tenth for English."""
    tokens = len(_TOKEN.findall(text))
    return tokens if text.isascii() else tokens + len(_WIDE.findall(text))


def _sections(text: str, blocks: list[Block], max_tokens: int) -> Iterator[tuple[str, list[Block], list[Block]]]:
    """Trail, headings and body of each section; a heading without a body is kept for the section after it."""
    headings: list[Block] = []
    heading_tokens = 0
    body: list[Block] = []
    last_trail = ""
    for block, trail in zip(blocks, heading_trails(blocks), strict=True):
        if block.kind == "heading":
            tokens = estimate_tokens(text[block.start : block.end])
            if body or 2 * (heading_tokens + tokens) > max_tokens:
                if headings or body:
                    yield last_trail, headings, body
                headings, body, heading_tokens = [], [], 0
            headings.append(block)
            heading_tokens += tokens
        else:
            body.append(block)
        last_trail = trail
    if headings or body:
        yield last_trail, headings, body


def _pack(text: str, headings: list[Block], body: list[Block], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Join pieces up to the size, evenly over the section, and break those that do not fit."""
    pieces = [_piece(text, (block,)) for block in headings] + _groups(text, tuple(body), 0)
    left = estimate_tokens(text[pieces[0].start : pieces[-1].end]) if pieces else 0
    share = left / ceil(left / max_tokens) if left else 0.0
    waiting = pieces[::-1]
    start = end = tokens = 0
    only_headings = False
    while waiting:
        piece = waiting.pop()
        gap = estimate_tokens(text[end : piece.start]) if tokens else 0
        joint = tokens + gap + piece.tokens
        has_share = not only_headings and tokens >= share and left >= share / 2
        if joint <= max_tokens and not has_share:
            only_headings = piece.kind == "heading" and (only_headings or not tokens)
            start = start if tokens else piece.start
            end, tokens = piece.end, joint
            left -= gap + piece.tokens
        elif (piece.tokens > max_tokens or only_headings) and (parts := _parts(text, piece, max_tokens)):
            waiting.extend(reversed(parts))
        elif tokens:
            yield start, end
            tokens, only_headings = 0, False
            waiting.append(piece)
        else:
            yield piece.start, piece.end
            left -= piece.tokens
    if tokens:
        yield start, end


def _piece(text: str, blocks: tuple[Block, ...], depth: int = 0) -> _Piece:
    start, end = blocks[0].start, blocks[-1].end
    several = len(blocks) > 1
    return _Piece(
        start,
        end,
        estimate_tokens(text[start:end]),
        blocks[0].kind,
        depth if several else 0,
        blocks if several else (),
    )


def _groups(text: str, blocks: tuple[Block, ...], depth: int) -> list[_Piece]:
    """Divide blocks so that a deeper one stays with the shallower one it belongs to."""
    if not blocks:
        return []
    outermost = min(block.indent for block in blocks)
    starts = [at for at, block in enumerate(blocks) if at == 0 or block.indent == outermost]
    if starts == [0]:
        starts = [0, 1]
    if depth >= _MAX_DEPTH:  # deeper than texts are: going on would not be linear
        starts = list(range(len(blocks)))
    bounds = [*starts, len(blocks)]
    return [_piece(text, blocks[low:high], depth + 1) for low, high in pairwise(bounds) if low < high]


def _parts(text: str, piece: _Piece, max_tokens: int) -> list[_Piece]:
    """The next smaller parts of a piece, or none if it cannot be divided."""
    if piece.blocks:
        return _groups(text, piece.blocks, piece.level)
    kind: Kind = "text" if piece.kind == "heading" else piece.kind
    for level, cuts in enumerate(_GRAINS[piece.level :], piece.level + 1):
        if kind == "code" and cuts in (_item_cuts, _sentence_cuts):
            continue
        spans = list(_between(text, piece, cuts(text, piece.start, piece.end, max_tokens)))
        if len(spans) > 1:
            return [_Piece(low, high, estimate_tokens(text[low:high]), kind, level) for low, high in spans]
    return []


def _between(text: str, piece: _Piece, cuts: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The spans between `cuts` without the white space around them, but with the indentation of a line."""
    for low, high in pairwise(chain([piece.start], cuts, [piece.end])):
        span = text[low:high]
        if span and not span.isspace():
            at_line = low > piece.start and text[low - 1] == "\n"
            yield (line_start(text, low) if at_line else low), low + len(span.rstrip())


def _item_cuts(text: str, start: int, end: int, max_tokens: int) -> Iterator[int]:
    return (item.start() for item in _ITEM.finditer(text, start, end))


def _sentence_cuts(text: str, start: int, end: int, max_tokens: int) -> Iterator[int]:
    for gap in _SENTENCE.finditer(text, start, end):
        if not _ABBREVIATION.search(text[max(start, gap.start() - 12) : gap.start()]):
            yield gap.end()


def _line_cuts(text: str, start: int, end: int, max_tokens: int) -> Iterator[int]:
    return (newline.end() for newline in _NEWLINE.finditer(text, start, end))


def _word_cuts(text: str, start: int, end: int, max_tokens: int) -> Iterator[int]:
    return (word.start() for word in _WORD.finditer(text, start, end))


def _cluster_cuts(text: str, start: int, end: int, max_tokens: int) -> Iterator[int]:
    """Cuts inside one word, a few tokens apart, where a grapheme cluster ends."""
    last = start
    tokens = 0
    for token in _TOKEN.finditer(text, start, end):
        at = token.start()
        if tokens >= max(1, max_tokens // 8) and (not _continues(text, at) or at - last >= _MAX_CLUSTER_CHARS):
            yield at
            last, tokens = at, 0
        tokens += estimate_tokens(token[0])


_GRAINS = (_item_cuts, _sentence_cuts, _line_cuts, _word_cuts, _cluster_cuts)


def _continues(text: str, at: int) -> bool:
    """Whether the character at `at` continues the grapheme cluster before it (UAX #29, the main cases)."""
    here, before = text[at], text[at - 1]
    if here.isascii():
        return False
    return (
        unicodedata.category(here) in ("Mn", "Me", "Mc")
        or here in "\u200c\u200d"
        or before == "\u200d"
        or "\U0001f3fb" <= here <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= here <= "\U000e007f"  # tags of a flag
        or "\u1160" <= here <= "\u11ff"  # vowels and finals of a Hangul syllable
        or ("\udc00" <= here <= "\udfff" and "\ud800" <= before <= "\udbff")
        or (_is_flag_letter(here) and _flag_letters_before(text, at) % 2 == 1)
    )


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flag_letters_before(text: str, at: int) -> int:
    count = 0
    while count < _MAX_CLUSTER_CHARS and at > count and _is_flag_letter(text[at - count - 1]):
        count += 1
    return count


def _with_definitions(text: str, spans: Iterable[tuple[int, int]]) -> Iterator[Passage]:
    """Passages of source code, each under the definitions that are open above its first line."""
    coming = deque(definitions(text))
    opened: list[tuple[int, str]] = []
    for start, end in spans:
        while coming and coming[0][0] < start:
            _, indent, title = coming.popleft()
            _close(opened, indent)
            opened.append((indent, title))
        first = text[start:end].partition("\n")[0]
        _close(opened, len(first) - len(first.lstrip()))
        yield Passage(start, end, " > ".join(title for _, title in opened))


def _close(opened: list[tuple[int, str]], indent: int) -> None:
    while opened and opened[-1][0] >= indent:
        opened.pop()
