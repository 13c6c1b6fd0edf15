"""A task's window: the bounded context that its next model call will show.

Owns the entries, their order and the rolling digest over them. It never counts tokens itself (counts are
recorded where an entry enters) and never calls an engine. Invariant: entries stand in the order of the ops
that brought them, whatever order the outcomes were recorded in.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import msgspec

from treering.events.catalogue import Compacted, Entry, MemoryRef, ModelCalled, ModelReplied, Part, Ref

__all__ = ["EMPTY_DIGEST", "Exchange", "Window", "WindowEntry", "memories_of", "refs_of", "render", "roll"]

EMPTY_DIGEST = ""
"""The rolling digest of a window that holds nothing."""

SUMMARY_INDEX = -1
"""The index of a summary of nothing: before what its op brings. Any other takes the place of the first that left."""


class WindowEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry: the `index`th that op `op` brought. `parts` are its text or where it stands in the log."""

    op: int
    index: int
    entry: Entry = msgspec.field(default=Entry("user", (), 0))


class Exchange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one op brought: what was asked, and a reply of `tokens`."""

    op: int
    entries: tuple[Entry, ...]
    reply: str
    tokens: int


class Window(msgspec.Struct, gc=False):
    """The entries of a window and their size in tokens.

    An exchange is made into entries when somebody reads them: a fold builds the windows of all tasks and looks at
    few. `kept` are the entries that went through a compaction.
    """

    kept: list[WindowEntry] = []
    exchanges: list[Exchange] = []
    tokens: int = 0

    def enter(self, op: int, called: ModelCalled, replied: ModelReplied) -> int:
        """An exchange enters: what was asked, and what was answered. Its size in tokens."""
        tokens = replied.tokens
        for entry in called.entries:
            tokens += entry.tokens
        brought = Exchange(op, called.entries, replied.text, replied.tokens)
        if not self.exchanges or self.exchanges[-1].op < op:
            self.exchanges.append(brought)
        else:
            insort(self.exchanges, brought, key=lambda other: other.op)
        self.tokens += tokens
        return tokens

    @property
    def empty(self) -> bool:
        """Whether nothing has entered yet."""
        return not self.exchanges and not self.kept

    @property
    def entries(self) -> list[WindowEntry]:
        """The entries in the order of their ops, made anew at each call."""
        found = list(self.kept)
        for one in self.exchanges:
            found += [WindowEntry(one.op, index, entry) for index, entry in enumerate(one.entries)]
            found.append(WindowEntry(one.op, len(one.entries), Entry("assistant", (one.reply,), one.tokens)))
        found.sort(key=lambda item: (item.op, item.index))
        return found

    def compact(self, op: int, event: Compacted) -> list[WindowEntry]:
        """What `event` names leaves and its summary takes the place of the first; what left."""
        gone = set(event.left)
        entries = self.entries
        left = [item for item in entries if (item.op, item.index) in gone]
        place = left[0] if left else WindowEntry(op, SUMMARY_INDEX)
        # The summary takes the place of the first entry that left, so that the order stays the order of ops.
        summary = WindowEntry(place.op, place.index, Entry("user", (event.summary,), event.tokens))
        kept = [item for item in entries if (item.op, item.index) not in gone]
        self.kept, self.exchanges = [*kept, summary], []
        self.tokens += event.tokens - sum(item.entry.tokens for item in left)
        return left

    def memories(self) -> set[str]:
        """Ids of the memories that the window's entries point at."""
        return memories_of(item.entry for item in self.entries)


def refs_of(entries: Iterable[Entry]) -> list[Ref]:
    """What these entries point at."""
    return [part for entry in entries for part in entry.parts if not isinstance(part, str)]


def memories_of(entries: Iterable[Entry]) -> set[str]:
    """Ids of the memories that these entries point at."""
    return {ref.id for ref in refs_of(entries) if isinstance(ref, MemoryRef)}


def render(parts: Sequence[Part], resolve: Callable[[Ref], str]) -> str:
    """The text of these parts; `resolve` finds what references stand for."""
    return "".join(part if isinstance(part, str) else resolve(part) for part in parts)


def roll(digest: str, role: str, text: str) -> str:
    """The rolling digest after one more message. Content only: no position, no handle, no size."""
    mixed = blake2b(digest.encode(), digest_size=20)
    mixed.update(role.encode() + b"\0")
    mixed.update(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest())
    return mixed.hexdigest()
