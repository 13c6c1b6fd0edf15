"""What is remembered, and who can see it: the hierarchy as a fold over causal views.

Owns memories, scopes, the token clock and the trunk. It never reads text out of a store and never decides an
eviction alone (`due` says what a policy wants; the event makes it so). Invariant: what a task sees is a
function of its own ops and those of the children that it joined, never of what its siblings are doing.

A scope is a task's own memory; the trunk (scope "") is that of the roots. A view is a path of (scope,
version): an item is visible if some scope on the path holds it at that version. A child's effects wait in
its scope, in order, until its parent takes the result.
"""

from bisect import bisect_right
from hashlib import blake2b

import msgspec

from treering.events.catalogue import Ref
from treering.memory.retention import KeepAll, Policy, parse_retention

__all__ = ["TRUNK", "Hierarchy", "Memory", "Scope", "View", "memory_id", "normalise"]

TRUNK = ""
"""The scope of the roots."""

_TICK, _WRITE, _ACCESS, _PIN = 0, 1, 2, 3

View = list[tuple[str, int]]
"""(scope, version) from the task's own scope up to the trunk."""


class Memory(msgspec.Struct, gc=False):
    """One memory. `placed` holds, per scope, the versions at which it became hot, cold, hot, ... (in tuples: the
    garbage collector soon leaves those alone, which is a third of the time to open a long run).

    `accessed` is its last access on the trunk's clock, `count` the number of accesses there.
    """

    id: str
    text: str
    tokens: int
    refs: tuple[Ref, ...] = ()
    pinned: bool = False
    accessed: int = 0
    count: int = 0
    placed: dict[str, tuple[int, ...]] = {}


class Scope(msgspec.Struct, gc=False):
    """A task's own memory. `pending` are effects for its parent: (kind, id, tokens)."""

    parent: str
    parent_version: int
    version: int = 0
    pending: list[tuple[int, str, int]] = []


class Hierarchy(msgspec.Struct):
    """All memories of a run, all scopes, and the trunk's clock.

    `policy` is the rule named `rule` with its own state, over what it may evict; `held` left it because the live
    root's window points at them; `revivable` are cold memories that were accessed and whose revival is not yet
    recorded.
    """

    memories: dict[str, Memory] = {}
    scopes: dict[str, Scope] = {}
    clock: int = 0
    trunk_version: int = 0
    rule: str = "none"
    policy: Policy = msgspec.field(default_factory=KeepAll)
    held: list[str] = []
    revivable: list[str] = []

    # --- effects of one task ------------------------------------------------------------------------

    def open(self, scope: str, parent: str) -> None:
        """A child begins: it sees its parent's memory as it is now."""
        self.scopes[scope] = Scope(parent, self._version(parent))

    def tick(self, scope: str, tokens: int) -> None:
        """`tokens` entered a window of this scope, or were generated in it."""
        if scope == TRUNK:
            self.clock += tokens
        elif tokens:
            pending = self.scopes[scope].pending
            if pending and pending[-1][0] == _TICK:
                pending[-1] = (_TICK, "", pending[-1][2] + tokens)
            else:
                pending.append((_TICK, "", tokens))

    def remember(self, scope: str, id: str, text: str, tokens: int, refs: tuple[Ref, ...], pinned: bool) -> None:
        """A memory is written in this scope; one that the scope's view already holds is accessed instead."""
        memory = self.memories.get(id)
        if memory is None:
            memory = self.memories[id] = Memory(id, text, tokens, refs)
        else:
            memory.refs += tuple(ref for ref in refs if ref not in memory.refs)
        if self._sees(scope, memory):
            self.access(scope, id)
        else:
            self._write(scope, memory)
        if pinned:
            self._pin(scope, memory)

    def access(self, scope: str, id: str) -> None:
        """A memory was used in this scope."""
        if scope != TRUNK:
            self.scopes[scope].pending.append((_ACCESS, id, 0))
        elif (memory := self.memories.get(id)) is not None:
            memory.accessed = self.clock
            memory.count += 1
            if self.policy.access(id, self.clock):
                return
            if TRUNK in memory.placed and not self.is_hot(id) and id not in self.revivable:
                self.revivable.append(id)

    def join(self, child: str, parent: str) -> None:
        """The parent takes a child's result, and with it the child's effects in their order."""
        scope = self.scopes.pop(child, None)
        if scope is None:
            return
        if parent != TRUNK:
            self.scopes[parent].version += 1
        for kind, id, tokens in scope.pending:
            if kind == _TICK:
                self.tick(parent, tokens)
            elif kind == _PIN:
                self._pin(parent, self.memories[id])
            elif kind == _ACCESS or self._sees(parent, memory := self.memories[id]):
                self.access(parent, id)
            else:
                self._write(parent, memory)

    # --- the trunk ------------------------------------------------------------------------------------

    def hold(self, ids: set[str]) -> None:
        """The memories that the live root's window points at: they are in use, and their age waits.

        What is held leaves the queue, and enters it again, as used now, when the window lets it go.
        """
        for id in self.held:
            memory = self.memories[id]
            if id not in ids and TRUNK in memory.placed and not memory.pinned and self.is_hot(id):
                memory.accessed = self.clock
                self.policy.add(id, memory.tokens, self.clock)
                self.policy.access(id, self.clock)
        self.held = sorted(ids & self.memories.keys())
        for id in self.held:
            self.policy.remove(id)

    def use(self, rule: str, seed: int) -> None:
        """Let this retention policy decide from now on; another than before begins with what is hot, by last access.

        Memories of equal age are in the order of their ids, so that the interleaving of siblings does not show.
        """
        if rule == self.rule:
            return
        self.rule, self.policy = rule, parse_retention(rule, seed)
        free = [memory for id, memory in self.memories.items() if self.is_hot(id) and not memory.pinned]
        for memory in sorted(free, key=lambda memory: (memory.accessed, memory.id)):
            if memory.id not in self.held:
                self.policy.add(memory.id, memory.tokens, memory.accessed)

    def due(self) -> str | None:
        """The next memory that the policy wants cold."""
        return self.policy.victim(self.clock)

    def evict(self, id: str) -> None:
        """A memory of the trunk goes cold."""
        self.policy.evict(id)
        self._turn(self.memories[id])

    def revive(self, id: str) -> None:
        """A cold memory of the trunk is hot again."""
        self.revivable.remove(id)
        self._turn(self.memories[id])
        if not self.memories[id].pinned and id not in self.held:
            self.policy.add(id, self.memories[id].tokens, self.clock)

    def is_hot(self, id: str) -> bool:
        """Whether a memory is hot in the trunk now."""
        return len(self.memories[id].placed.get(TRUNK, ())) % 2 == 1

    def resident(self) -> tuple[int, int]:
        """Tokens of the trunk's hot memories, and of those among them that are pinned, which no policy counts."""
        hot = [memory for id, memory in self.memories.items() if self.is_hot(id)]
        return sum(memory.tokens for memory in hot), sum(memory.tokens for memory in hot if memory.pinned)

    def digest(self) -> str:
        """A digest of the trunk: its memories, which are hot, when they were last accessed, its clock."""
        mixed = blake2b(str(self.clock).encode(), digest_size=20)
        for id in sorted(id for id, memory in self.memories.items() if TRUNK in memory.placed):
            memory = self.memories[id]
            mixed.update(f"{id} {self.is_hot(id)} {memory.pinned} {memory.accessed} {memory.count}\n".encode())
        return mixed.hexdigest()

    # --- views ----------------------------------------------------------------------------------------

    def view(self, scope: str) -> View:
        """What a task with this scope sees now."""
        if scope == TRUNK:
            return [(TRUNK, self.trunk_version)]
        path: View = [(scope, self.scopes[scope].version)]
        while scope != TRUNK:
            found = self.scopes[scope]
            path.append((found.parent, found.parent_version))
            scope = found.parent
        return path

    def state(self, id: str, view: View) -> str | None:
        """`hot`, `cold`, or None where the view does not hold this memory."""
        placed = self.memories[id].placed
        found: str | None = None
        for scope, version in view:
            turns = placed.get(scope)
            if turns and (count := bisect_right(turns, version)):
                if count % 2:
                    return "hot"
                found = "cold"
        return found

    def _turn(self, memory: Memory) -> None:
        self.trunk_version += 1
        memory.placed[TRUNK] += (self.trunk_version,)

    def _sees(self, scope: str, memory: Memory) -> bool:
        if scope == TRUNK:
            return TRUNK in memory.placed  # every version of the trunk so far
        return self.state(memory.id, self.view(scope)) is not None

    def _version(self, scope: str) -> int:
        return self.trunk_version if scope == TRUNK else self.scopes[scope].version

    def _write(self, scope: str, memory: Memory) -> None:
        if scope == TRUNK:
            self.trunk_version += 1
            memory.placed[TRUNK] = (self.trunk_version,)
            memory.accessed = self.clock
            if not memory.pinned and memory.id not in self.held:
                self.policy.add(memory.id, memory.tokens, self.clock)
        else:
            own = self.scopes[scope]
            own.version += 1
            memory.placed.setdefault(scope, (own.version,))
            own.pending.append((_WRITE, memory.id, 0))

    def _pin(self, scope: str, memory: Memory) -> None:
        # Like a write, it waits for the join: what the trunk evicts must not depend on how far a child has come.
        if scope == TRUNK:
            memory.pinned = True
            self.policy.remove(memory.id)
        else:
            self.scopes[scope].pending.append((_PIN, memory.id, 0))


def normalise(text: str) -> str:
    """A memory's text with white space at its ends and doubled blanks gone: what its id is made from."""
    return " ".join(text.split())


def memory_id(text: str) -> str:
    """The id of a memory: from its content alone, so that the same text is never kept twice."""
    return "m" + blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
