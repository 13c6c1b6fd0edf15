"""A task's window: the bounded context that its next model call will show.

Owns the entries, their order and the rolling digest over them. It never counts tokens itself (counts are
recorded where an entry enters) and never calls an engine. Invariant: entries stand in the order of the ops
that brought them, whatever order the outcomes were recorded in.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from hashlib import blake2b

import msgspec

from treering.events.catalogue import Compacted, Entry, MemoryRef, ModelCalled, ModelReplied, Part, Ref

__all__ = ["EMPTY_DIGEST", "Window", "WindowEntry", "render", "roll"]

EMPTY_DIGEST = ""
"""The rolling digest of a window that holds nothing."""

SUMMARY_INDEX = -1
"""The index of a summary among its op's entries: it stands before what the op itself brings."""


class WindowEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry: the `index`th that op `op` brought. `parts` are its text or where it stands in the log."""

    op: int
    index: int
    entry: Entry = msgspec.field(default=Entry("user", (), 0))


class Window(msgspec.Struct):
    """The entries of a window and their size in tokens."""

    entries: list[WindowEntry] = []
    tokens: int = 0

    def enter(self, op: int, called: ModelCalled, replied: ModelReplied) -> None:
        """An exchange enters: what was asked, and what was answered."""
        for index, entry in enumerate(called.entries):
            self._add(WindowEntry(op, index, entry))
        reply = Entry("assistant", (replied.text,), replied.tokens)
        self._add(WindowEntry(op, len(called.entries), reply))

    def compact(self, op: int, event: Compacted) -> list[WindowEntry]:
        """What `event` names leaves and its summary takes the place of the first; what left."""
        gone = set(event.left)
        left = [item for item in self.entries if (item.op, item.index) in gone]
        kept = [item for item in self.entries if (item.op, item.index) not in gone]
        self.entries = kept
        self.tokens -= sum(item.entry.tokens for item in left)
        place = left[0] if left else WindowEntry(op, SUMMARY_INDEX)
        # The summary takes the place of the first entry that left, so that the order stays the order of ops.
        self._add(WindowEntry(place.op, place.index, Entry("user", (event.summary,), event.tokens)))
        return left

    def refs(self) -> list[Ref]:
        """What the window's entries point at."""
        return [part for item in self.entries for part in item.entry.parts if not isinstance(part, str)]

    def memories(self) -> set[str]:
        """Ids of the memories that the window's entries point at."""
        return {ref.id for ref in self.refs() if isinstance(ref, MemoryRef)}

    def _add(self, item: WindowEntry) -> None:
        if not self.entries or (self.entries[-1].op, self.entries[-1].index) < (item.op, item.index):
            self.entries.append(item)
        else:
            insort(self.entries, item, key=lambda other: (other.op, other.index))
        self.tokens += item.entry.tokens


def render(parts: Sequence[Part], resolve: Callable[[Ref], str]) -> str:
    """The text of these parts; `resolve` finds what references stand for."""
    return "".join(part if isinstance(part, str) else resolve(part) for part in parts)


def roll(digest: str, role: str, text: str) -> str:
    """The rolling digest after one more message. Content only: no position, no handle, no size."""
    mixed = blake2b(digest.encode(), digest_size=20)
    mixed.update(role.encode() + b"\0")
    mixed.update(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest())
    return mixed.hexdigest()
