"""Bisect: which outcome makes a result go bad?

Owns the replies in which a bad run differs from a good one, and the search among them: forks of the good run take
the first of the bad run's replies and go on by themselves. Each trial is a fork that stays in the store. It never
judges a result. Invariant: with the replies before the found one the result was judged good, with it bad.

The search assumes what every bisection does: that once the result is bad it stays so as more replies are taken.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from treering.events.catalogue import ModelReplied
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.log import LogStore, record_at
from treering.replays.comparing import align
from treering.replays.showing import state_at
from treering.runtime.engine import Engine
from treering.runtime.registry import AgentFunction
from treering.runtime.runner import Outcome, Runner, fork_run, spawned_at

__all__ = ["Candidate", "Found", "Trial", "bisect", "candidates_of", "outcome_of"]

Judge = Callable[[str, Outcome], bool]
"""Whether the outcome of a run is good."""


class Candidate(msgspec.Struct, frozen=True):
    """A reply that is another in the bad run: event `a` of the good run, `b` of the bad one."""

    task: str
    op: int
    a: int
    b: int
    before: str
    after: str


class Trial(msgspec.Struct, frozen=True):
    """One fork: how many of the bad run's replies it took, and how it was judged. `calls` reached the model."""

    run: str
    taken: int
    good: bool
    calls: int


class Found(msgspec.Struct, frozen=True):
    """The reply that makes the result go bad. `alone`: it does so without those before it."""

    culprit: Candidate
    place: int
    candidates: int
    alone: bool
    trials: tuple[Trial, ...]


def candidates_of(store: LogStore, good: str, bad: str) -> list[Candidate]:
    """The replies with another text, of ops that correspond, in the order of the bad run."""
    aligned = align(store, good, bad)
    found: list[Candidate] = []
    for theirs, ours in aligned.pairs.items():
        if "~" in theirs or theirs not in aligned.b or ours not in aligned.a:
            continue
        a_ops = aligned.a[ours].ops
        for number, op in aligned.b[theirs].ops.items():
            other = a_ops.get(number)
            if other is None or not other.kind == op.kind == "ModelReplied" or other.digest == op.digest:
                continue
            before, after = _reply(store, good, other.seq), _reply(store, bad, op.seq)
            if before is not None and after is not None and before != after:
                found.append(Candidate(ours, number, other.seq, op.seq, before, after))
    return sorted(found, key=lambda candidate: candidate.b)


def _reply(store: LogStore, run: str, seq: int) -> str | None:
    """What a model answered; None if it failed, or its text was destroyed."""
    event = decode(record_at(store, run, seq)).event
    return event.text if isinstance(event, ModelReplied) and event.failure is None else None


def outcome_of(store: LogStore, run: str) -> Outcome:
    """How the last root of a run ended. Raises UsageError if it did not."""
    state = state_at(store, run)
    task = state.tasks[state.roots[-1]] if state.roots else None
    if task is None or task.status == "running":
        raise UsageError(f"expected run {run} to have ended, found it {state.status}; treering resume {run}")
    result: Any = msgspec.json.decode(task.result) if task.result else None
    return Outcome(run, task.path, task.status, result, task.failure)


async def bisect(
    store: LogStore,
    good: str,
    bad: str,
    judge: Judge,
    engine: Engine,
    agents: dict[str, AgentFunction] | None = None,
) -> Found:
    """Find the first reply of the bad run with which the good one goes bad: about log2 of their number of forks.

    Raises UsageError if the judge does not tell the runs apart, or no reply makes the difference.
    """
    if not judge(good, outcome_of(store, good)):
        raise UsageError(f"expected the check to pass for the good run {good}, found that it fails")
    if judge(bad, outcome_of(store, bad)):
        raise UsageError(f"expected the check to fail for the bad run {bad}, found that it passes")
    candidates = candidates_of(store, good, bad)
    if not candidates:
        raise UsageError(f"expected replies that differ, found none between {good} and {bad}; see treering diff")
    trials: list[Trial] = []

    async def is_good(taken: list[Candidate]) -> bool:
        run = fork_run(store, good, store.head(good)[0], [(one.a, one.after) for one in taken], reuse=True)
        outcome, calls = await _go_on(store, good, run, engine, agents)
        trials.append(Trial(run, len(taken), judge(run, outcome), calls))
        return trials[-1].good

    low, high = 0, len(candidates)
    if await is_good(candidates):
        raise UsageError(
            f"expected the replies of {bad} to make {good} go bad, found that all {high} together do not: something "
            "else differs (tools, clock, configuration, code); see treering diff"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if await is_good(candidates[:middle]):
            low = middle
        else:
            high = middle
    culprit = candidates[high - 1]
    alone = high == 1 or not await is_good([culprit])
    return Found(culprit, high, len(candidates), alone, tuple(trials))


async def _go_on(
    store: LogStore, good: str, run: str, engine: Engine, agents: dict[str, AgentFunction] | None
) -> tuple[Outcome, int]:
    """Run a fork to its end, with the questions that the good run was asked later; how many calls reached the model."""
    before = store.head(run)[0]
    state = state_at(store, good)
    async with Runner(store, run, engine, agents=agents) as runner:
        outcome = await runner.resume()
        for root in state.roots[len(runner.state.roots) :]:
            asked = spawned_at(store, good, state.tasks[root].spawned)
            outcome = await runner.ask(asked.goal, msgspec.json.decode(asked.inputs))
    calls = 0
    for record in store.read(run, after=before, kinds=["ModelReplied"]):
        event = decode(record).event
        calls += isinstance(event, ModelReplied) and not event.reused and not event.edited
    assert outcome is not None
    return outcome, calls
