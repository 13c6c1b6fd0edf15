"""What a retention policy costs per access and per eviction: 1,000,000 memories beside 1,000.

`python -m benchmarks.bench_retention [--items 1000000]`. An access is of a memory that is there; an eviction makes
room for one that is new, so its figure holds `add`, `victim` and `evict`. Under a Zipf pattern (exponents 1.5 and 1)
the many may cost 1.5 times the few. Under a uniform one, the cache misses of so many memories cost 8 times whatever the code does: there the
bar is 1.5 times an OrderedDict of the same size that does the same (`move_to_end`, or `popitem` and a new key).
CPU time; each figure is the best of five rounds, in which all sizes take turns.
"""

import argparse
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from random import Random

from benchmarks import row
from treering.memory.retention import POLICIES, Policy, parse_retention

__all__ = ["main"]

_ROUNDS = 5
_ACCESSES = 100_000
_EVICTIONS = 20_000
_FEW = 1000
_EXPONENTS = (1.5, 1.0)

_Work = Callable[[list[str], int], float]


class _Bare:
    """The floor: least recently used by an OrderedDict alone."""

    def __init__(self, ids: list[str]) -> None:
        self.used = OrderedDict.fromkeys(ids, 1)

    def access(self, wanted: list[str], clock: int) -> float:
        used = self.used
        started = time.process_time()
        for id in wanted:
            used.move_to_end(id)
        return (time.process_time() - started) / len(wanted)

    def evict(self, new: list[str], clock: int) -> float:
        used = self.used
        started = time.process_time()
        for id in new:
            used[id] = 1
            used.popitem(last=False)
        return (time.process_time() - started) / len(new)


class _Kept:
    """A policy that is full. Its memories are of one token, and the clock ticks once per access."""

    def __init__(self, name: str, ids: list[str]) -> None:
        self.policy: Policy = parse_retention(f"{name}:{len(ids)}")
        self.window = name == "window"
        for clock, id in enumerate(ids):
            self.policy.add(id, 1, clock)

    def access(self, wanted: list[str], clock: int) -> float:
        access = self.policy.access
        started = time.process_time()
        for at, id in enumerate(wanted, clock):
            access(id, at)
        return (time.process_time() - started) / len(wanted)

    def evict(self, new: list[str], clock: int) -> float:
        add, victim, evict = self.policy.add, self.policy.victim, self.policy.evict
        if self.window:
            clock += 10**9  # all are due: one goes for each that comes
        started = time.process_time()
        for id in new:
            add(id, 1, clock)
            if (gone := victim(clock)) is not None:
                evict(gone)
        return (time.process_time() - started) / len(new)


def _zipf(count: int, accesses: int, exponent: float, chance: Random) -> list[int]:
    """Ranks by Zipf's law."""
    sums = list(accumulate(rank**-exponent for rank in range(1, count + 1)))
    return [bisect_left(sums, chance.random() * sums[-1]) for _ in range(accesses)]


def _ids(count: int, seed: int) -> list[str]:
    chance = Random(seed)
    return [f"m{chance.getrandbits(64):016x}" for _ in range(count)]


def _measure(make: Callable[[list[str]], _Bare | _Kept], ids: dict[int, list[str]]) -> dict[tuple[str, int], float]:
    """Seconds per step by (what, items)."""
    best: dict[tuple[str, int], float] = {}
    chance = Random(1)
    places = {}
    for count in ids:
        places["uniform", count] = [chance.randrange(count) for _ in range(_ACCESSES)]
        for exponent in _EXPONENTS:
            places[f"Zipf {exponent:g}", count] = _zipf(count, _ACCESSES, exponent, chance)
    kept = {count: make(ids[count]) for count in ids}
    clock = 10**7
    for _ in range(_ROUNDS):
        for pattern, count in places:
            clock += _ACCESSES
            seconds = kept[count].access([ids[count][place] for place in places[pattern, count]], clock)
            best[pattern, count] = min(best.get((pattern, count), 1.0), seconds)
    clock += _ACCESSES
    for number in range(_ROUNDS):  # after the accesses: what was there at first goes now
        for count in ids:
            seconds = kept[count].evict(_ids(_EVICTIONS, 100 + number), clock)
            best["evict", count] = min(best.get(("evict", count), 1.0), seconds)
    return best


def main(items: int = 1_000_000) -> None:
    """Measure and print."""
    ids = {_FEW: _ids(_FEW, 7), items: _ids(items, 8)}
    bare = _measure(_Bare, ids)
    _print("OrderedDict alone", bare, bare, items)
    for name in POLICIES:
        _print(name, _measure(lambda wanted, name=name: _Kept(name, wanted), ids), bare, items)  # type: ignore[misc]


def _print(name: str, found: dict[tuple[str, int], float], bare: dict[tuple[str, int], float], items: int) -> None:
    for what in (*(f"Zipf {exponent:g}" for exponent in _EXPONENTS), "evict"):
        many, few = found[what, items] * 1e9, found[what, _FEW] * 1e9
        row(f"{name}: {what}, {items} beside {_FEW}, ns", f"{many:.0f}", f"{few:.0f}", many / few, 1.5)
    for what in ("uniform", "evict") if found is not bare else ():
        many, floor = found[what, items] * 1e9, bare[what, items] * 1e9
        row(f"{name}: {what}, {items} beside OrderedDict, ns", f"{many:.0f}", f"{floor:.0f}", many / floor, 1.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    main(parser.parse_args().items)
