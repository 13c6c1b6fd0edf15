"""Spilling: which entries of a call are too large for its window, and what is shown of them.

Owns the room that entries share and the preview of what is cut. It keeps nothing itself: whole texts are blobs for
its caller to keep. Invariant: what is pinned is never cut, and all that is cut says how much of it is not shown.
"""

from collections.abc import Callable, Sequence

import msgspec

from treering.events.catalogue import Entry, Part, Spill
from treering.events.codec import text_digest
from treering.events.log import Blob
from treering.memory.windows import Window
from treering.runtime.compacting import SUMMARY_TOKENS
from treering.runtime.engine import Message

__all__ = ["Asked", "fitting", "shortened"]

_PREVIEW_TOKENS = 16
"""What a spilled text shows at the least."""

Count = Callable[[Message], int]


class Asked(msgspec.Struct, frozen=True):
    """What is to enter a window: its parts, and the text that they stand for."""

    role: str
    parts: tuple[Part, ...]
    text: str
    pinned: bool


def fitting(asked: Sequence[Asked], window: Window, room: int, count: Count) -> tuple[tuple[Entry, ...], list[Blob]]:
    """The entries of a call with `room` tokens for window and entries, and the texts that are kept as blobs."""
    sizes = [count(Message(one.role, one.text)) for one in asked]
    spilled = _too_large([one.pinned for one in asked], sizes, window, room)
    entries: list[Entry] = []
    blobs: list[Blob] = []
    for at, (one, size) in enumerate(zip(asked, sizes, strict=True)):
        if at in spilled:
            blobs.append(Blob(text_digest(one.text), one.text))
            entries.append(_preview(one, size, spilled[at], count))
        else:
            entries.append(Entry(one.role, one.parts, size, one.pinned))
    return tuple(entries), blobs


def shortened(text: str, characters: int) -> str:
    """The beginning of a text, and a mark that says how much is cut."""
    return f"{text[:characters]}\n[cut: {len(text) - characters} of {len(text)} characters are not shown]"


def _too_large(pinned: Sequence[bool], sizes: Sequence[int], window: Window, room: int) -> dict[int, int]:
    """Which entries are too large beside all that must stay, and the size of the preview of each.

    Those that are not pinned share what is left: what small ones do not need is for the larger ones.
    """
    if window.tokens + sum(sizes) <= room:
        return {}
    stays = sum(item.entry.tokens for item in window.entries if item.entry.pinned)
    room -= stays + sum(size for size, pin in zip(sizes, pinned, strict=True) if pin)
    if window.tokens > stays:
        room -= SUMMARY_TOKENS
    free = sorted((at for at, pin in enumerate(pinned) if not pin), key=lambda at: sizes[at])
    if sum(sizes[at] for at in free) <= room:
        return {}
    spilled: dict[int, int] = {}
    for left, at in zip(range(len(free), 0, -1), free, strict=True):
        share = min(sizes[at], room // left)
        if share < sizes[at]:
            spilled[at] = max(_PREVIEW_TOKENS, share // 2)
        room -= share
    return spilled


def _preview(one: Asked, tokens: int, room: int, count: Count) -> Entry:
    keep = len(one.text) * room // max(1, tokens)
    while True:
        preview = shortened(one.text, keep)
        size = count(Message(one.role, preview))
        if size <= room or keep < 8:
            spill = Spill(text_digest(one.text), tokens, len(one.text))
            return Entry(one.role, (preview,), size, one.pinned, spill)
        keep = keep * 3 // 4
