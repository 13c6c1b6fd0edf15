"""The best that could have been done: Belady's rule, which knows the future.

Owns that rule over traces. Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM
Systems Journal 5 (2), 1966. Invariant: where all sizes are equal, no policy of ours has more hits: like those, it
evicts after a new memory has come, and never the one that came last.

Where sizes differ, the optimum is NP-hard to find; evicting the farthest next use is then an estimate, which a
policy may beat.
"""

from heapq import heapify, heappop, heappush

from treering.replays.traces import ACCESS, END, LEAVE, RETURN, WRITE, Trace

__all__ = ["optimum"]

_SLACK = 10_000


def optimum(trace: Trace, size: int) -> list[int]:
    """Hits in each part of the trace, at this size in tokens, by evicting what is used again last."""
    return _of_keys(trace, size) if trace.keys else _of_steps(trace, size)


def _of_keys(trace: Trace, size: int) -> list[int]:
    keys, count = trace.keys, len(trace.keys)
    nexts = [count] * count
    seen: dict[str, int] = {}
    for at in range(count - 1, -1, -1):
        nexts[at] = seen.get(keys[at], count)
        seen[keys[at]] = at
    hot: set[str] = set()
    heap: list[int] = []  # minus the next use of each that is hot, and of some that were used since
    never: list[str] = []  # hot, and not used again
    found: list[int] = []
    for start, end in trace.bounds:
        hits = 0
        for at in range(start, end):
            key, following = keys[at], nexts[at]
            if key in hot:
                hits += 1
            else:
                if len(hot) >= size:
                    hot.remove(never.pop() if never else keys[-heappop(heap)])
                hot.add(key)
            if following < count:
                heappush(heap, -following)
            else:
                never.append(key)
        found.append(hits)
        if len(heap) > 2 * size + _SLACK:
            heap = [one for one in heap if -one >= end]
            heapify(heap)
    return found


def _of_steps(trace: Trace, size: int) -> list[int]:
    steps = trace.steps
    nexts, seen = [len(steps)] * len(steps), dict[str, int]()
    for at in range(len(steps) - 1, -1, -1):
        what, id, _, _ = steps[at]
        nexts[at] = seen.get(id, len(steps))
        if what == ACCESS:
            seen[id] = at
    hot: dict[str, int] = {}
    held: dict[str, int] = {}
    coming: dict[str, int] = {}
    heap: list[tuple[int, str]] = []
    found, back, newest, resident = [], dict[str, int](), "", 0
    for start, end in trace.bounds:
        hits = 0
        for at in range(start, end):
            what, id, tokens, _ = steps[at]
            coming[id] = nexts[at]
            enters: dict[str, int] = {}
            if what == ACCESS and id in hot:
                hits += 1
                heappush(heap, (-nexts[at], id))
            elif what == ACCESS:
                back[id] = tokens
            elif what == WRITE:
                enters = {id: tokens}
            elif what == LEAVE and id in hot:
                held[id] = hot.pop(id)
                resident -= tokens
            elif what == RETURN and id in held:
                enters = {id: held.pop(id)}
            elif what == END:
                enters, back = back, {}
            for one, its_tokens in enters.items():
                if its_tokens <= size:
                    hot[one], newest = its_tokens, one
                    resident += its_tokens
                    heappush(heap, (-coming[one], one))
            if what == END:
                resident -= _make_room(heap, hot, coming, newest, resident - size)
        found.append(hits)
    return found


def _make_room(
    heap: list[tuple[int, str]], hot: dict[str, int], coming: dict[str, int], newest: str, wanted: int
) -> int:
    """Evict at least `wanted` tokens, the farthest next use first; how many went."""
    gone, spared = 0, None
    while gone < wanted and heap:
        entry = heappop(heap)
        id = entry[1]
        if id not in hot or -entry[0] != coming[id]:
            continue  # of an earlier use
        if id == newest:
            spared = entry
        else:
            gone += hot.pop(id)
    if spared is not None:
        heappush(heap, spared)
    return gone
