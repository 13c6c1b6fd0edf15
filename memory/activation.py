"""ACT-R's base-level activation as a policy: of a few memories drawn by chance, the least active goes.

Owns that policy. Sources: Anderson and Schooler, "Reflections of the environment in memory", 1991, for the law;
Petrov, "Computationally efficient approximation of the base-level learning equation in ACT-R", ICCM 2006, for
the approximation. The draws come from a seed and a count that are part of the state: there is no other chance.
Invariant: the steps of an eviction do not depend on how many memories there are.
"""

import struct
from hashlib import blake2b
from math import sqrt

import msgspec

from treering.memory.queues import Sized

__all__ = ["SAMPLE", "Activation", "Trail", "strength"]

SAMPLE = 8
"""How many memories an eviction looks at. The exact order of all would change with every tick of the clock."""


class Trail(msgspec.Struct, gc=False):
    """How a memory was used: at which tick it came, when it was last used, and how often, coming included."""

    tokens: int
    created: int
    accessed: int
    count: int = 1
    place: int = 0


def strength(trail: Trail, clock: int) -> float:
    """The sum over all uses of age to the power of -0.5, as Petrov's formula with one exact use has it.

    The last use counts exactly, the n-1 before it as if spread evenly over the memory's life L:
    1/sqrt(t) + 2(n-1)/(sqrt(L)+sqrt(t)). Activation is its logarithm, whose order is the same. Only square
    roots and the four operations, which are exact to the last bit on every machine. Ages begin at 1.
    """
    age, life = sqrt(clock - trail.accessed + 1), sqrt(clock - trail.created + 1)
    return 1 / age + 2 * (trail.count - 1) / (life + age)


class Activation(Sized, tag="actr"):
    """Evicts the least active of SAMPLE memories, drawn anew for each eviction.

    `ids` holds the memories in no order that matters, so that one is drawn, and taken out, in constant steps.
    `held` keeps the trails of those that a window holds, until they come back.
    """

    seed: int = 0
    evictions: int = 0
    ids: list[str] = msgspec.field(default_factory=list)
    trails: dict[str, Trail] = msgspec.field(default_factory=dict)
    held: dict[str, Trail] = msgspec.field(default_factory=dict)

    def access(self, id: str, clock: int) -> bool:
        """A memory was used; whether it is in this policy's hands."""
        trail = self.trails.get(id)
        if trail is None:
            return id in self.too_large.entries
        trail.accessed = clock
        trail.count += 1
        return True

    def evict(self, id: str) -> None:
        """This memory goes, and its trail is forgotten."""
        self.evictions += 1
        self.remove(id)
        self.held.pop(id, None)

    def _enter(self, id: str, tokens: int, clock: int) -> None:
        trail = self.held.pop(id, None) or Trail(tokens, clock, clock)
        trail.place = len(self.ids)
        self.ids.append(id)
        self.trails[id] = trail

    def _leave(self, id: str) -> int:
        trail = self.trails.pop(id, None)
        if trail is None:
            return 0
        last = self.ids.pop()
        if last != id:
            self.ids[trail.place] = last
            self.trails[last].place = trail.place
        self.held[id] = trail
        return trail.tokens

    def _choose(self, clock: int) -> str | None:
        trails, ids = self.trails, self.ids
        drawn = [ids[place] for place in self._draw()]
        strengths = [strength(trails[id], clock) for id in drawn]
        return drawn[strengths.index(min(strengths))] if drawn else None

    def _draw(self) -> list[int]:
        """SAMPLE places, all different, each set of them as likely (Floyd's algorithm); all if there are no more."""
        count = len(self.ids) - (self.ids[-1] == self.newest)
        if count <= SAMPLE:
            return list(range(count))
        drawn = struct.unpack("<8Q", blake2b(f"{self.seed} {self.evictions}".encode()).digest())
        places: list[int] = []
        for top, chance in zip(range(count - SAMPLE, count), drawn, strict=True):
            place = chance % (top + 1)
            places.append(top if place in places else place)
        return places
