"""The lab: recorded accesses under every retention policy, and under the optimum. No model is asked.

Owns the replay, the figures and the choice. A policy replayed over the log of a run that had it evicts what that run
evicted, in the same order. Time comes from a clock that is passed in. Invariant: all figures but those of time follow
from the trace, the sizes and the seed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import msgspec

from treering.events.errors import UsageError
from treering.memory.retention import POLICIES, KeepAll, KeepWhileUsed, Policy, parse_retention
from treering.replays.optimum import optimum
from treering.replays.traces import ACCESS, END, LEAVE, RETURN, WRITE, Trace

__all__ = ["Choice", "Figures", "Report", "examine", "size_of"]

_RESAMPLES = 1000
_DRAWS = 300_000
_SAMPLES = 200
_SLACK = 1.02
"""How far over the size a policy's mean may be to count as one of that size: `window:` has no size but by its mean."""


class Figures(msgspec.Struct, frozen=True):
    """One policy on one trace. `low` and `high` are the 95 % interval of its hit ratio over resampled parts.

    `regret` is the optimum's hit ratio at this policy's size (of `window:`, its mean) less its own; `resident` are (clock, tokens) pairs of what is in the policy's hands: no pins, nothing held.
    """

    policy: str
    hit_ratio: float
    low: float
    high: float
    regret: float
    evictions: int
    mean_tokens: float
    peak_tokens: int
    ns_per_access: float
    resident: tuple[tuple[int, int], ...]


class Choice(msgspec.Struct, frozen=True):
    """The policy of most hits within the size, and in what share of the resampled runs each would be chosen."""

    policy: str
    shares: dict[str, float]


class Report(msgspec.Struct, frozen=True):
    """What the lab found. `exact`: all sizes are equal, so that no policy of this size can beat the optimum."""

    name: str
    size: int
    accesses: int
    distinct_tokens: int
    parts: str
    part_count: int
    optimum: float
    exact: bool
    policies: tuple[Figures, ...]
    choice: Choice | None


class _Replay(msgspec.Struct):
    hits: list[int]
    evicted: list[str]
    resident: list[tuple[int, int]]


def size_of(trace: Trace, wanted: str) -> int:
    """The size in tokens that `wanted` says: a number, or a percentage of all that is in the trace. UsageError."""
    text = wanted.removesuffix("%")
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 15 and int(text) > 0):
        raise UsageError(f"expected a size in tokens above 0, or a percentage such as 10%, found {wanted[:80]!r}")
    return int(text) if text == wanted else max(1, trace.distinct * int(text) // 100)


def examine(trace: Trace, rules: Sequence[str], size: int, now: Callable[[], float], seed: int = 0) -> Report:
    """Replay `trace` under `rules` (names without a size get `size`) and the optimum. Raises UsageError."""
    if not trace.accesses:
        raise UsageError(
            f"expected {trace.name} to hold accesses to memories, found none; nothing was recalled in it"
        )
    best: dict[int, float] = {}

    def best_at(tokens: int) -> float:
        if tokens not in best:
            best[tokens] = sum(optimum(trace, tokens)) / trace.accesses
        return best[tokens]

    weights = _accesses(trace)
    resamples = list(_resamples(len(weights), seed))
    figures: list[Figures] = []
    ratios: dict[str, list[float]] = {}
    for rule in dict.fromkeys(_rule(trace, rule, size) for rule in rules):
        policy = parse_retention(rule, seed)
        began = now()
        replay = _replay(trace, policy)
        seconds = now() - began
        ratios[rule] = [_ratio(replay.hits, weights, picks) for picks in resamples]
        figures.append(_figures(trace, rule, policy, replay, seconds, sorted(ratios[rule]), best_at))
    return Report(
        trace.name,
        size,
        trace.accesses,
        trace.distinct,
        trace.parts,
        len(trace.bounds),
        best_at(size),
        trace.unit,
        tuple(figures),
        _choose(figures, ratios, size),
    )


def _figures(
    trace: Trace,
    rule: str,
    policy: Policy,
    replay: _Replay,
    seconds: float,
    ratios: list[float],
    best_at: Callable[[int], float],
) -> Figures:
    resident = [tokens for _, tokens in replay.resident]
    mean = sum(resident) / len(resident)
    if isinstance(policy, KeepAll):
        size = max(1, trace.distinct)
    elif isinstance(policy, KeepWhileUsed):
        size = max(1, round(mean))
    else:
        size = policy.size
    ratio, tail = sum(replay.hits) / trace.accesses, len(ratios) // 40
    return Figures(
        rule,
        ratio,
        ratios[tail],
        ratios[-1 - tail],
        best_at(size) - ratio,
        len(replay.evicted),
        mean,
        max(resident),
        seconds / trace.accesses * 1e9,
        tuple(replay.resident),
    )


def _rule(trace: Trace, rule: str, size: int) -> str:
    if rule == "window":
        return f"window:{_window(trace, size)}"
    return f"{rule}:{size}" if rule in POLICIES else rule


def _window(trace: Trace, size: int) -> int:
    """The window under which `size` tokens are hot on the mean, so that it can be compared with the sized policies."""
    if trace.keys:
        last: dict[str, int] = {}
        gaps: list[int] = []
        for at, key in enumerate(trace.keys):
            if (before := last.get(key)) is not None:
                gaps.append(at - before)
            last[key] = at
        gaps = sorted(gaps + [len(trace.keys) - at for at in last.values()])
        sums = list(accumulate(gaps, initial=0))

        def mean(window: int) -> float:
            short = bisect_left(gaps, window)
            return (sums[short] + window * (len(gaps) - short)) / len(trace.keys)

        most = len(trace.keys)
    else:

        def mean(window: int) -> float:
            resident = _replay(trace, KeepWhileUsed(window)).resident
            return sum(tokens for _, tokens in resident) / len(resident)

        most = max(1, trace.steps[-1][3])
    return max(1, bisect_left(range(most), True, key=lambda window: mean(window + 1) > size))


def _replay(trace: Trace, policy: Policy) -> _Replay:
    if not trace.keys:
        return _replay_steps(trace, policy)
    if isinstance(policy, KeepAll):
        return _keep_all(trace)
    return _replay_keys(trace, policy)


def _replay_keys(trace: Trace, policy: Policy) -> _Replay:
    access, add, victim, evict = policy.access, policy.add, policy.victim, policy.evict
    timed = isinstance(policy, KeepWhileUsed)
    found = _Replay([], [], [])
    gone, clock = found.evicted, 0
    for start, end in trace.bounds:
        hits = 0
        for key in trace.keys[start:end]:
            clock += 1
            if access(key, clock):
                hits += 1
                if not timed:
                    continue
            else:
                add(key, 1, clock)
            while (id := victim(clock + timed)) is not None:  # an age is that of the next tick
                evict(id)
                gone.append(id)
        found.hits.append(hits)
        found.resident.append((clock, len(policy.accessed.entries) if timed else policy.tokens))  # type: ignore[union-attr]
    return found


def _keep_all(trace: Trace) -> _Replay:
    found, seen = _Replay([], [], []), set[str]()
    for start, end in trace.bounds:
        before = len(seen)
        seen.update(trace.keys[start:end])
        found.hits.append(end - start - len(seen) + before)
        found.resident.append((end, len(seen)))
    return found


def _replay_steps(trace: Trace, policy: Policy) -> _Replay:
    """What the trunk does: an access of what is cold makes it hot again when its event is over."""
    found = _Replay([], [], [])
    hot: dict[str, int] = {}
    held: dict[str, int] = {}
    back: dict[str, int] = {}
    resident = 0
    every = max(1, len(trace.steps) // _SAMPLES)
    for start, end in trace.bounds:
        hits = 0
        for at in range(start, end):
            what, id, tokens, clock = trace.steps[at]
            if what == ACCESS:
                if id in hot:
                    hits += 1
                    policy.access(id, clock)
                else:
                    back[id] = tokens
            elif what == WRITE or (what == RETURN and id in held):
                hot[id] = tokens
                resident += tokens
                policy.add(id, tokens, clock)
                if held.pop(id, None) is not None:
                    policy.access(id, clock)
            elif what == LEAVE and id in hot:
                policy.remove(id)
                held[id] = hot.pop(id)
                resident -= tokens
            elif what == END:
                for one, its_tokens in back.items():
                    hot[one] = its_tokens
                    resident += its_tokens
                    policy.add(one, its_tokens, clock)
                back = {}
                while (gone := policy.victim(clock)) is not None:
                    policy.evict(gone)
                    resident -= hot.pop(gone)
                    found.evicted.append(gone)
                if at % every == 0 or at == len(trace.steps) - 1 or not found.resident:
                    found.resident.append((clock, resident))
        found.hits.append(hits)
    return found


def _accesses(trace: Trace) -> list[int]:
    if trace.keys:
        return [end - start for start, end in trace.bounds]
    return [sum(what == ACCESS for what, _, _, _ in trace.steps[start:end]) for start, end in trace.bounds]


def _resamples(parts: int, seed: int) -> Iterator[list[int]]:
    """Parts drawn with replacement, as many as there are, again and again (a linear congruential generator)."""
    state = seed
    for _ in range(max(100, min(_RESAMPLES, _DRAWS // parts))):
        picks = []
        for _ in range(parts):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            picks.append((state >> 33) % parts)
        yield picks


def _ratio(hits: list[int], weights: list[int], picks: list[int]) -> float:
    return sum(hits[pick] for pick in picks) / max(1, sum(weights[pick] for pick in picks))


def _choose(figures: list[Figures], ratios: dict[str, list[float]], size: int) -> Choice | None:
    """The one of most hits among those that keep to the size on the mean; the cheaper of equals stands first."""
    fit = [one for one in figures if one.mean_tokens <= size * _SLACK and one.policy != "none"]
    if not fit:
        return None
    wins = dict.fromkeys((one.policy for one in fit), 0)
    count = len(ratios[fit[0].policy])
    for number in range(count):
        wins[max(wins, key=lambda rule: ratios[rule][number])] += 1
    chosen = max(fit, key=lambda one: one.hit_ratio).policy
    return Choice(chosen, {rule: won / count for rule, won in sorted(wins.items(), key=lambda item: -item[1])})
