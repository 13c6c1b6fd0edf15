"""What is remembered, and who can see it: the hierarchy as a fold over causal views.

Owns memories, scopes, the token clock and the trunk. It never reads text out of a store and never decides an
eviction alone (`due` says what a policy wants; the event makes it so). Invariant: what a task sees is a
function of its own ops and those of the children that it joined, never of what its siblings are doing.

A scope is a task's own memory; the trunk (scope "") is that of the roots. A view is a path of (scope,
version): an item is visible if some scope on the path holds it at that version, and so is what is known of it
(who wrote it, what it was made from). A child's effects wait in its scope, in order, until its parent takes the
result.
"""

from bisect import bisect_right
from hashlib import blake2b

import msgspec

from treering.events.catalogue import MemoryRef, Ref, SourceSpan
from treering.memory.retention import KeepAll, Policy, parse_retention

__all__ = ["TRUNK", "Hierarchy", "Memory", "Scope", "View", "Written", "memory_id", "normalise"]

TRUNK = ""
"""The scope of the roots."""

_TICK, _WRITE, _ACCESS = 0, 1, 2

View = list[tuple[str, int]]
"""(scope, version) from the task's own scope up to the trunk."""


class Written(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """That a memory was written, as the scope `scope` holds it since its version `version`.

    `clock` is that scope's token clock then, `task` and `op` say who wrote it, `seq` is the event.
    """

    scope: str = TRUNK
    version: int = 0
    clock: int = 0
    task: str = ""
    op: int = 0
    seq: int = 0
    refs: tuple[Ref, ...] = ()
    pinned: bool = False


class Memory(msgspec.Struct, gc=False):
    """One memory. `placed` holds, per scope, the versions at which it became hot, cold, hot, ... (in tuples: the
    garbage collector soon leaves those alone, which is a third of the time to open a long run).

    `accessed` is its last access on the trunk's clock, `count` the number of accesses there, `pinned` whether
    the trunk holds it pinned. `writes` are the first write in each scope and those that added to what is known.
    """

    id: str
    text: str
    tokens: int
    writes: tuple[Written, ...] = ()
    pinned: bool = False
    accessed: int = 0
    count: int = 0
    placed: dict[str, tuple[int, ...]] = {}


class Scope(msgspec.Struct, gc=False):
    """A task's own memory. `pending` are effects for its parent: (kind, id, tokens); `clock` is the parent's at its
    spawn and what ticked in the scope since."""

    parent: str
    parent_version: int
    clock: int = 0
    version: int = 0
    pending: list[tuple[int, str, int]] = []


class Hierarchy(msgspec.Struct):
    """All memories of a run, all scopes, and the trunk's clock.

    `policy` is the rule named `rule` with its own state, over what it may evict; `held` left it because the live
    root's window points at them; `revivable` are cold memories that were accessed and whose revival is not yet
    recorded. `turns` names for each version of the trunk the memory that became hot or cold then ("" where only what
    is known of one changed), so that whoever follows the trunk need not look at all of it; `shared` are memories
    that several tasks wrote.
    """

    memories: dict[str, Memory] = {}
    scopes: dict[str, Scope] = {}
    clock: int = 0
    trunk_version: int = 0
    rule: str = "none"
    policy: Policy = msgspec.field(default_factory=KeepAll)
    held: list[str] = []
    revivable: list[str] = []
    turns: list[str] = []
    shared: list[str] = []

    # --- effects of one task ------------------------------------------------------------------------

    def open(self, scope: str, parent: str) -> None:
        """A child begins: it sees its parent's memory as it is now."""
        self.scopes[scope] = Scope(parent, self._version(parent), self.clock_of(parent))

    def tick(self, scope: str, tokens: int) -> None:
        """`tokens` entered a window of this scope, or were generated in it."""
        if scope == TRUNK:
            self.clock += tokens
        elif tokens:
            own = self.scopes[scope]
            own.clock += tokens
            pending = own.pending
            if pending and pending[-1][0] == _TICK:
                pending[-1] = (_TICK, "", pending[-1][2] + tokens)
            else:
                pending.append((_TICK, "", tokens))

    def remember(
        self,
        scope: str,
        id: str,
        text: str,
        tokens: int,
        refs: tuple[Ref, ...],
        pinned: bool,
        task: str = "",
        op: int = 0,
        seq: int = 0,
    ) -> None:
        """A memory is written in this scope; one that the scope's view already holds is accessed instead."""
        memory = self.memories.get(id)
        if memory is None:
            memory = self.memories[id] = Memory(id, text, tokens)
        self._write(scope, memory, task, op, seq, refs, pinned)

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
            elif kind == _ACCESS:
                self.access(parent, id)
            else:
                memory = self.memories[id]
                wrote, memory.writes = _part(memory.writes, child)
                memory.placed.pop(child, None)  # nobody's view goes through the child's scope any more
                self._write(parent, memory, wrote.task, wrote.op, wrote.seq, wrote.refs, wrote.pinned)

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

    def view_digest(self, view: View) -> str:
        """A digest of what a view holds: its memories, which are hot, who wrote them and from what."""
        mixed = blake2b(str(self.clock_of(view[0][0])).encode(), digest_size=20)
        for id in sorted(self.memories):
            if (state := self.state(id, view)) is not None:
                known = [(one.task, one.op, one.clock, one.refs, one.pinned) for one in self.written(id, view)]
                mixed.update(f"{id} {state} {known}\n".encode())
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

    def written(self, id: str, view: View) -> list[Written]:
        """The writes of a memory that a view holds, the trunk's first: who, when and what it was made from."""
        writes = self.memories[id].writes
        return [
            one
            for scope, version in reversed(view)
            for one in writes
            if one.scope == scope and one.version <= version
        ]

    def provenance(self, id: str, view: View) -> tuple[Ref, ...]:
        """What a memory was made from, as far as a view knows."""
        return tuple(dict.fromkeys(ref for one in self.written(id, view) for ref in one.refs))

    def origins(self, id: str, view: View) -> set[str]:
        """Digests of the sources that a memory comes from, also by way of other memories."""
        found: set[str] = set()
        reached, waiting = {id}, [id]
        while waiting:
            for ref in self.provenance(waiting.pop(), view):
                if isinstance(ref, SourceSpan):
                    found.add(ref.source)
                elif isinstance(ref, MemoryRef) and ref.id in self.memories and ref.id not in reached:
                    reached.add(ref.id)
                    waiting.append(ref.id)
        return found

    def accesses(self, scope: str) -> list[str]:
        """Ids of the memories whose accesses in a scope wait for its parent, in order; none in the trunk."""
        pending = self.scopes[scope].pending if scope != TRUNK else []
        return [id for kind, id, _ in pending if kind == _ACCESS]

    def own(self, scope: str, version: int) -> list[str]:
        """Ids of what a task that is not yet joined had written at a version of its scope."""
        ids = dict.fromkeys(id for kind, id, _ in self.scopes[scope].pending if kind == _WRITE)
        return [id for id in ids if (turns := self.memories[id].placed.get(scope)) and turns[0] <= version]

    def clock_of(self, scope: str) -> int:
        """The token clock as a task with this scope knows it."""
        return self.clock if scope == TRUNK else self.scopes[scope].clock

    def _version(self, scope: str) -> int:
        return self.trunk_version if scope == TRUNK else self.scopes[scope].version

    def _turn(self, memory: Memory) -> None:
        memory.placed[TRUNK] += (self._advance(memory.id),)

    def _sees(self, scope: str, memory: Memory) -> bool:
        if scope == TRUNK:
            return TRUNK in memory.placed  # every version of the trunk so far
        return self.state(memory.id, self.view(scope)) is not None

    def _advance(self, turned: str) -> int:
        """The next version of the trunk, with the memory that turned hot or cold."""
        self.turns.append(turned)
        self.trunk_version += 1
        return self.trunk_version

    def _write(
        self, scope: str, memory: Memory, task: str, op: int, seq: int, refs: tuple[Ref, ...], pinned: bool
    ) -> None:
        known = bool(memory.placed) and self._sees(scope, memory)  # nearly all are new, and in nobody's view
        if known and not self._adds(memory.id, refs, pinned, self.view(scope)):
            self.access(scope, memory.id)
            return
        if scope == TRUNK:
            version, clock = self._advance("" if known else memory.id), self.clock
        else:
            own = self.scopes[scope]
            own.version += 1
            own.pending.append((_WRITE, memory.id, 0))  # an access too, once it is merged
            version, clock = own.version, own.clock
        placed = Written(scope, version, clock, task, op, seq, refs, pinned)
        if memory.writes:
            if any(one.task != task for one in memory.writes) and memory.id not in self.shared:
                self.shared.append(memory.id)
            memory.writes = (*memory.writes, placed)
        else:
            memory.writes = (placed,)
        if not known:
            memory.placed[scope] = (version,)
        if scope != TRUNK:
            return
        memory.pinned = memory.pinned or pinned
        if known:
            self.access(scope, memory.id)
        else:
            memory.accessed = self.clock
            if not memory.pinned and memory.id not in self.held:
                self.policy.add(memory.id, memory.tokens, self.clock)
        if memory.pinned:
            self.policy.remove(memory.id)

    def _adds(self, id: str, refs: tuple[Ref, ...], pinned: bool, view: View) -> bool:
        """Whether a write says of a known memory what its view does not know."""
        known = self.written(id, view)
        if pinned and not any(one.pinned for one in known):
            return True
        return not {ref for one in known for ref in one.refs}.issuperset(refs)


def _part(writes: tuple[Written, ...], scope: str) -> tuple[Written, tuple[Written, ...]]:
    """The first of these in a scope, and the others."""
    if len(writes) == 1:
        return writes[0], ()
    first = next(one for one in writes if one.scope == scope)
    return first, tuple(one for one in writes if one is not first)


def normalise(text: str) -> str:
    """A memory's text as it is kept: verbatim, but without white space at its ends."""
    return text.strip()


def memory_id(text: str) -> str:
    """The id of a memory: from its text alone, so that the same text is never kept twice.

    White space counts: code that differs in its indentation is not the same text.
    """
    return "m" + blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
