"""Small workflows that between them use every op. Agents only: no clocks, no patches."""

from typing import Any

from treering.events.catalogue import Budget
from treering.events.errors import TreeringError
from treering.runtime.errors import BudgetExceeded, ChildCancelled, ChildFailed, LimitReached, ModelFailed, OpTimeout
from treering.runtime.task import Task

__all__ = ["CORPUS", "EFFECTS", "count_effect", "leaf", "pay_once"]

EFFECTS: list[str] = []
"""What the tools below did to the world."""


async def count_effect(name: str) -> str:
    EFFECTS.append(name)
    return f"did {name}"


async def pay_once(name: str) -> str:
    EFFECTS.append(f"paid {name}")
    return f"paid {name}"


async def leaf(task: Task, goal: str) -> str:
    return (await task.generate(f"Do {goal}", max_tokens=12)).text


async def fan_out(task: Task, goal: str) -> list[str]:
    children = [task.spawn(leaf, f"{goal} part {n}") for n in range(4)]
    answers: list[str] = await task.gather(*children)
    merged = await task.generate(" / ".join(answers), max_tokens=20)
    return [*answers, merged.text]


async def middle(task: Task, goal: str) -> str:
    twins = [task.spawn(leaf, goal, key=str(n)) for n in range(2)]
    return " & ".join(await task.gather(*twins))


async def nested(task: Task, goal: str) -> str:
    left, right = task.spawn(middle, goal + " left"), task.spawn(middle, goal + " right")
    a, b = await task.gather(left, right)
    return (await task.generate(f"{a} | {b}", max_tokens=9)).text


async def broken(task: Task, goal: str) -> str:
    await task.generate(goal, max_tokens=8)
    raise ValueError("this one always fails")


async def failing(task: Task, goal: str) -> list[str]:
    children = [task.spawn(broken, goal), task.spawn(leaf, goal)]
    results = await task.gather(*children, return_failures=True)
    return ["failed" if isinstance(result, ChildFailed) else str(result) for result in results]


async def sleeper(task: Task, goal: str) -> str:
    await task.sleep(50.0)
    return goal


async def cancelled(task: Task, goal: str) -> str:
    child = task.spawn(sleeper, goal)
    await task.generate("work meanwhile", max_tokens=8)
    running = await child.cancel()
    try:
        await child
    except ChildCancelled:
        return f"cancelled {running}"
    return "not cancelled"


async def racing(task: Task, goal: str) -> Any:
    slow, fast = task.spawn(sleeper, goal), task.spawn(leaf, goal)
    winner, result = await task.first(slow, fast)
    await task.generate("after the race", max_tokens=8)
    return [winner, result]


async def late(task: Task, goal: str) -> str:
    try:
        await task.timeout(1.0, task.spawn(sleeper, goal))
    except OpTimeout:
        return (await task.generate("it was late", max_tokens=8)).text
    return "in time"


async def racing_calls(task: Task, goal: str) -> Any:
    winner, result = await task.first(task.generate(f"first {goal}", max_tokens=6), task.sleep(50.0))
    after = await task.generate("after the race", max_tokens=8)
    return [winner, result.text, after.text]


async def call_in_time(task: Task, goal: str) -> str:
    said = await task.timeout(50.0, task.generate(f"in time {goal}", max_tokens=6))
    return said.text + (await task.generate("and then", max_tokens=8)).text


async def compacting(task: Task, goal: str) -> str:
    said = ""
    for step in range(8):
        prompt = f"Step {step} of Project{step} with number {step * 7} " + "word " * 12
        said = (await task.generate(prompt, max_tokens=16)).text
    return said


async def spender(task: Task, goal: str) -> int:
    steps = 0
    try:
        for step in range(10):
            await task.generate(f"{goal} {step}", max_tokens=10)
            steps = step + 1
    except BudgetExceeded:
        return steps
    return steps


async def over_budget(task: Task, goal: str) -> Any:
    child = task.spawn(spender, goal, budget=Budget(tokens=80))
    return await child


async def timed(task: Task, goal: str) -> Any:
    """Its child has hours, and no more tokens than it has itself."""
    first: int = await task.spawn(spender, goal, budget=Budget(seconds=10_000.0))
    return [first, await task.spawn(spender, goal, budget=Budget(seconds=10_000.0, cost_micros=5))]


async def mixed_budgets(task: Task, goal: str) -> Any:
    return [await task.spawn(timed, goal, budget=Budget(tokens=120)), await task.spawn(spender, goal)]


async def busy(task: Task, goal: str) -> str:
    return (await task.generate(f"busy with {goal} " + "word " * 20, max_tokens=30)).text


async def queued_losers(task: Task, goal: str) -> Any:
    """Calls that lose a race while they wait for a slot, or for a budget that others hold."""
    child = task.spawn(busy, goal)
    races = []
    for n in range(2):
        losers = [task.generate(f"loser {n} {m} of {goal} " + "word " * 9, max_tokens=30) for m in range(3)]
        try:
            races.append((await task.first(task.sleep(0.5), *losers))[0])
        except TreeringError as error:
            races.append(type(error).__name__)
    try:
        await child
    except TreeringError as error:
        races.append(type(error).__name__)
    return races


async def deep(task: Task, goal: str) -> str:
    try:
        return f"{goal}>" + str(await task.spawn(deep, goal))
    except (LimitReached, ChildFailed) as error:
        return type(error).__name__


async def keeper(task: Task, goal: str) -> str:
    await task.remember(f"The keeper of {goal} is Ada{goal}.")
    hits = await task.recall(goal, 2, over="memory")
    return hits[0].text if hits else "nothing"


async def shared_memory(task: Task, goal: str) -> Any:
    await task.remember("The common rule is to be kind.", pinned=True)
    children = [task.spawn(keeper, name) for name in ("harbour", "tower", "mill")]
    seen = await task.gather(*children)
    hits = await task.recall("keeper of the tower", 3, over="memory")
    await task.generate(f"Use {len(hits)} hits", max_tokens=6)
    return [seen, [hit.text for hit in hits]]


async def side_by_side(task: Task, goal: str) -> Any:
    child = task.spawn(keeper, goal)
    one, two = task.generate("one side", max_tokens=5), task.generate("two side", max_tokens=7)
    results = await task.gather(one, child, two)
    last = await task.generate("and so?", max_tokens=8)
    return [str(result) for result in results] + [last.text]


async def acting(task: Task, goal: str) -> Any:
    done = [await task.call(count_effect, idempotent=True, name=f"{goal}{n}") for n in range(3)]
    chance = await task.random()
    return [done, 0.0 <= chance < 1.0]


async def payer(task: Task, goal: str) -> str:
    paid = await task.gather(task.call(pay_once, name=f"{task.path} {goal}"), return_failures=True)
    return str(paid) + (await task.generate(f"{goal} is paid", max_tokens=8)).text


async def paying(task: Task, goal: str) -> Any:
    """Tools that must not act twice: alone, beside a call, and in a child whose failures are taken as they come."""
    first = await task.call(pay_once, name=f"{task.path} one")
    beside = await task.gather(task.call(pay_once, name=f"{task.path} two"), task.generate("beside it", max_tokens=6))
    try:
        child = await task.gather(task.spawn(payer, "three"), return_failures=True)
    except TreeringError:
        return "went on without knowing"
    return [first, str(beside), str(child)]


async def sampling(task: Task, goal: str) -> Any:
    drawn = [await task.random(), await task.random()]
    return [*drawn, *await task.gather(task.now(), task.now())]


async def talker(task: Task, goal: str) -> str:
    said = ""
    for step in range(6):
        said = (await task.generate(f"{goal} step{step} " + "word " * 14, max_tokens=12)).text
    return said


async def wordy(task: Task, goal: str) -> str:
    """Siblings whose windows overflow."""
    children = [task.spawn(talker, f"{goal}{n}") for n in range(2)]
    return (await task.generate(" ".join(await task.gather(*children)), max_tokens=8)).text


async def twins(task: Task, goal: str) -> str:
    """Siblings that nothing tells apart but their place."""
    await task.generate("before them", max_tokens=8)
    children = [task.spawn(leaf, goal) for _ in range(2)]
    return (await task.generate(" ".join(await task.gather(*children)), max_tokens=8)).text


async def stubborn(task: Task, goal: str) -> str:
    try:
        await task.generate("FAIL for good", max_tokens=8)
    except ModelFailed:
        return "gave up"
    return "answered"


CORPUS = {
    agent.__name__: agent
    for agent in (
        fan_out,
        nested,
        failing,
        cancelled,
        racing,
        late,
        racing_calls,
        call_in_time,
        compacting,
        over_budget,
        mixed_budgets,
        deep,
        shared_memory,
        side_by_side,
        acting,
        paying,
        sampling,
        wordy,
        twins,
        stubborn,
    )
}
