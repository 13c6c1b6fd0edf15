"""Budgets: no child escapes what limits those above it, in tokens, seconds or money."""

import sys
from pathlib import Path

import anyio
import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from invariants import check_log
from laws import config_for

from treering.events.catalogue import Budget
from treering.events.codec import decode
from treering.events.in_memory import InMemoryStore
from treering.replays.verifying import verify
from treering.runtime.engine import EngineError, EngineTransientError
from treering.runtime.errors import BudgetExceeded, ModelFailed, WindowTooSmall
from treering.runtime.runner import Runner, create_run, open_log
from treering.runtime.task import Say
from treering.runtime.testing import ScriptedEngine


@pytest.fixture
def anyio_backend():
    from trio.testing import MockClock

    return ("trio", {"clock": MockClock(autojump_threshold=0)})


class PricedEngine(ScriptedEngine):
    """Each call costs 10 millionths."""

    async def generate(self, request, on_text=None):
        return msgspec.structs.replace(await super().generate(request, on_text), cost_micros=10)


async def spend(task, goal):
    """Talks until it is told to stop; how often it could, and why no more."""
    for step in range(40):
        try:
            await task.generate(f"{goal} {step} " + "word " * 10, max_tokens=10, keep=False)
        except BudgetExceeded as error:
            return [step, str(error)]
    return [40, ""]


class SimulatedTime:
    """Seconds of the event loop's clock, so that what takes long costs no time."""

    def now_ms(self):
        return 0

    def monotonic(self):
        return anyio.current_time()

    def entropy(self, size):
        return bytes(size)


async def run_it(root, budget, engine=None, **changes):
    """Run an agent under a budget; its result and the state. The log keeps all invariants and can be verified."""
    store = InMemoryStore()
    run = create_run(store, config_for("root", budget=budget, **changes))
    agents = {"root": root, "spend": spend}
    async with Runner(
        store, run, engine or PricedEngine(delay_s=1.0), agents=agents, seams=SimulatedTime()
    ) as runner:
        outcome = await runner.ask("go")
    assert outcome.status == "finished", outcome.error
    async with Runner(store, run, agents=agents, replay=True) as runner:
        assert await runner.replay() == [outcome]
    check_log(store.read(run))
    verify(store, run)
    return outcome.result, open_log(store, run)[0], [decode(record) for record in store.read(run)]


LIMITS = {"tokens": 100, "seconds": 4.0, "cost_micros": 40}
AMPLE = {"tokens": 90, "seconds": 3.5, "cost_micros": 35}
"""Less than what limits the parent, so that it can be set aside."""
TOKENS = 25
"""Of a call by `spend`: 15 and 10 to come. It takes a second."""


@pytest.mark.parametrize("own", ["tokens", "seconds", "cost_micros"])
@pytest.mark.parametrize("limited", ["tokens", "seconds", "cost_micros"])
@pytest.mark.parametrize("between", [False, True])
async def test_a_child_with_a_budget_of_its_own_keeps_to_its_parents_limits(own, limited, between):
    """Whatever its own budget limits, and however deep it is: what limits the root is not exceeded."""

    async def middle(task, goal):
        return await task.spawn(spend, goal, budget=Budget(**{own: ample}))

    async def root(task, goal):
        return await task.spawn(middle if between else spend, goal, budget=Budget(**{own: ample}))

    ample = AMPLE[own] if own == limited else 10_000
    (steps, why), state, _ = await run_it(root, Budget(**{limited: LIMITS[limited]}))
    pool = state.pools["1"]
    assert steps == (3 if own == limited == "tokens" else 4)
    assert getattr(pool, limited) <= LIMITS[limited]
    assert pool.tokens == steps * TOKENS
    assert (pool.seconds, pool.cost_micros, pool.reserved, pool.reserved_seconds) == (steps * 1.0, steps * 10, 0, 0)
    assert f"budget_{limited.removesuffix('_micros')} allows" in why
    assert ("the budget= of the spawn of task 1.1" in why) == (own == limited)


@pytest.mark.parametrize(("kind", "more"), [("tokens", 101), ("seconds", 4.5), ("cost_micros", 41)])
async def test_more_than_there_is_cannot_be_set_aside(kind, more):
    """The spawn is refused, through a child that limits something else too; nothing stays reserved."""

    async def middle(task, goal):
        with pytest.raises(BudgetExceeded, match=r"--budget|budget_cost"):
            await task.spawn(spend, goal, budget=Budget(**{kind: more}))
        return await task.spawn(spend, goal, budget=Budget(**{kind: LIMITS[kind] / 2 if kind == "seconds" else 20}))

    async def root(task, goal):
        other = "seconds" if kind == "tokens" else "tokens"
        return await task.spawn(middle, goal, budget=Budget(**{other: 1000}))

    _, state, _ = await run_it(root, Budget(**{kind: LIMITS[kind]}))
    pool = state.pools["1"]
    assert (pool.reserved, pool.reserved_seconds, pool.reserved_cost) == (0, 0, 0)


async def test_what_is_set_aside_can_be_used_to_the_end():
    """All of a budget may go to children: the parent asks nothing more, they do."""

    async def root(task, goal):
        halves = [task.spawn(spend, str(n), budget=Budget(seconds=2.0)) for n in range(2)]
        with pytest.raises(BudgetExceeded, match="budget_seconds allows 4"):
            await task.generate("and I?", max_tokens=5)
        return await task.gather(*halves)

    results, state, _ = await run_it(root, Budget(seconds=4.0))
    assert [steps for steps, _ in results] == [2, 2]
    assert state.pools["1"].seconds == 4.0


async def test_tools_are_refused_once_the_seconds_are_over():
    """As model calls are; the task can still end with what it has, and a replay meets the same refusal."""
    acted = []

    async def slow(n):
        await anyio.sleep(1.0)
        acted.append(n)

    async def root(task, goal):
        for n in range(8):
            try:
                await task.call(slow, idempotent=True, n=n)
            except BudgetExceeded as error:
                return str(error)

    why, state, stored = await run_it(root, Budget(seconds=3.0))
    assert acted == [0, 1, 2]
    assert state.pools["1"].seconds == 3.0
    assert "budget_seconds allows 3" in why
    assert [one.header.kind for one in stored][-3:] == ["ToolCalled", "Refused", "TaskFinished"]


@pytest.mark.parametrize(("error", "calls", "seconds"), [(EngineError, 2, 4.0), (EngineTransientError, 1, 6.0)])
async def test_failed_attempts_take_their_time_from_the_budget(error, calls, seconds):
    """Each of them does, and the waits between them do not."""

    class Failing(ScriptedEngine):
        async def generate(self, request, on_text=None):
            await anyio.sleep(2.0)
            raise error("no")

    async def root(task, goal):
        why = []
        for n in range(4):
            try:
                await task.generate(f"try {n}", max_tokens=3)
            except (BudgetExceeded, ModelFailed) as found:
                why.append(type(found).__name__)
        return why

    why, state, _ = await run_it(root, Budget(seconds=4.0), Failing())
    assert why == ["ModelFailed"] * calls + ["BudgetExceeded"] * (4 - calls)
    assert state.pools["1"].seconds == seconds


async def test_a_prompt_that_is_too_large_for_its_window_costs_nothing():
    """It was never sent."""

    async def root(task, goal):
        with pytest.raises(WindowTooSmall):
            await task.generate(Say(("word " * 200,), pinned=True), max_tokens=5)

    _, state, _ = await run_it(root, Budget())
    assert state.pools["1"].tokens == 0


@pytest.mark.parametrize("limit", [None, 45])
async def test_a_call_that_lost_before_its_turn_came_costs_nothing(limit):
    """It never began: the log holds its outcome and no call, and what it would need is not refused either."""

    async def once(task, goal):
        await task.generate("busy", max_tokens=10)

    async def root(task, goal):
        child = task.spawn(once, "busy")
        await task.sleep(0.1)
        winner, _ = await task.first(task.sleep(0.1), task.generate("queued " * 20, max_tokens=30))
        await child
        return winner

    winner, state, stored = await run_it(root, Budget(tokens=limit), concurrency=1)
    assert winner == 0
    called = {one.header.task: one.event for one in stored if one.header.kind == "ModelCalled"}
    replied = {one.header.task: one.event for one in stored if one.header.kind == "ModelReplied"}
    assert set(called) == {"1.1"}
    assert replied["1"].failure.kind == "cancelled"
    assert state.pools["1"].tokens == called["1.1"].prompt_tokens + replied["1.1"].usage.generated
