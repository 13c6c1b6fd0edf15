"""Small workflows as plain data, the one agent that interprets them, and hypothesis strategies that make them.

A program is a list of steps, a step a list of a word and its arguments. It travels as the task's inputs, so that
it is recorded with the run. What an op gave goes into the next prompts, so that whatever differs once, differs on.

In a *settled* program every race is decided by far: one side needs a few seconds of model time, the other sleeps
for hours first. Then no crash can change the winner, and two runs must be equal throughout. In any other program
timing decides, which is recorded; see `laws.assert_parts_at_choices` for what must be equal nevertheless.
"""

from typing import Any

from corpus import count_effect, pay_once
from hypothesis import strategies as st

from treering.events.catalogue import Budget
from treering.events.errors import TreeringError
from treering.memory.recall import Hit
from treering.runtime.prompts import Say
from treering.runtime.task import Child, Task

__all__ = ["HOURS", "interpret", "loose_programs", "programs", "steady_programs"]

HOURS = 10_000.0
"""Longer than all that is quick in a program together."""

MINUTES = 500.0
"""A deadline that everything quick meets, and nothing that sleeps for hours does."""


async def interpret(task: Task, goal: str, program: list[Any]) -> list[str]:
    """Do what the program says; what came of each step. The last words of a step go into the next prompts."""
    life = _Life(task, goal)
    for step in program:
        if step[0] == "raise":
            raise ValueError(f"{goal} was told to fail")
        try:
            await life.take(step)
        except TreeringError as error:
            life.seen.append(type(error).__name__)
    return life.seen


class _Life:
    """One task of a program: what it saw so far, and its children that are not joined."""

    def __init__(self, task: Task, goal: str) -> None:
        self.task, self.goal = task, goal
        self.seen: list[str] = []
        self.hits: list[Hit] = []
        self.children: list[Child] = []

    async def take(self, step: list[Any]) -> None:
        match step:
            case ["spawn", program, options]:
                self.children.append(self.child(program, options))
            case ["join", number]:
                if self.children:
                    self.seen.append(_words(await self.children.pop(number % len(self.children))))
            case ["cancel", program]:
                child = self.child(program, {})
                await self.task.generate(f"{self.goal} goes on meanwhile", max_tokens=6)
                self.seen.append(_words(await child.cancel()))
                await child
            case ["recall", _]:
                self.hits = await self.op(step)
                self.seen.append(_words(self.hits))
            case _:
                self.seen.append(_words(await self.op(step)))

    def op(self, step: list[Any]) -> Any:
        """The op, or the child, that a step stands for."""
        task, goal, last = self.task, self.goal, " ".join(self.seen[-1:])
        match step:
            case ["say", number, tokens]:
                return task.generate(f"{goal} {number} after {last[:60]}", max_tokens=tokens)
            case ["cite"]:
                return task.generate(Say((f"{goal} by ", *self.hits)), max_tokens=6)
            case ["stubborn"]:
                return task.generate(f"FAIL {goal}", max_tokens=8)
            case ["vote"]:
                return task.generate(f"{goal} votes", max_tokens=6, temperature=1.0, keep=False)
            case ["remember", name, pinned]:
                return task.remember(f"The {name} is kept.", pinned=pinned)
            case ["recall", name]:
                return task.recall(f"the {name}", 2, over="memory")
            case ["act", name]:
                return task.call(count_effect, idempotent=True, name=f"{task.path} {name}")
            case ["pay", name]:
                return task.call(pay_once, name=f"{task.path} {name}")
            case ["chance"]:
                return task.random()
            case ["time"]:
                return task.now()
            case ["sleep", seconds]:
                return task.sleep(seconds)
            case ["run", program, options]:
                return self.child(program, options)
            case ["gather", steps, return_failures]:
                return task.gather(*map(self.op, steps), return_failures=return_failures)
            case ["first", steps]:
                return task.first(*map(self.op, steps))
            case ["timeout", seconds, inner]:
                return task.timeout(seconds, self.op(inner))
        raise ValueError(f"expected a step of a program, found {step!r}")

    def child(self, program: list[Any], options: dict[str, Any]) -> Child:
        budget = options.get("budget")
        return self.task.spawn(
            interpret,
            f"{self.goal[:20]} {options.get('named', 'part')} {' '.join(self.seen[-1:])[:12]}",
            key=options.get("key", ""),
            budget=None if budget is None else Budget(**budget),
            window_tokens=options.get("window"),
            program=program,
        )


def _words(value: Any) -> str:
    """What an op gave, as words for a prompt."""
    if isinstance(value, Exception):
        return type(value).__name__
    if isinstance(value, list | tuple):
        return " ".join(map(_words, value))
    return str(getattr(value, "text", getattr(value, "id", value)))


# --- strategies -------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["lantern", "harbour", "mill"])
SAYS = st.tuples(st.just("say"), st.integers(0, 3), st.integers(3, 16)).map(list)
PLAIN = st.one_of(
    SAYS,
    SAYS,
    st.just(["stubborn"]),
    st.tuples(st.just("remember"), NAMES, st.booleans()).map(list),
    st.tuples(st.just("recall"), NAMES).map(list),
    st.tuples(st.just("act"), NAMES).map(list),
    st.sampled_from([["chance"], ["time"], ["cite"]]),
    st.just(["vote"]),
)
PAYS = st.one_of(PLAIN, st.tuples(st.just("pay"), NAMES).map(list))
LINES = st.lists(st.one_of(PLAIN, st.just(["raise"])), min_size=1, max_size=4)
"""Programs in which nothing runs beside anything: what a budget refuses in them is not a matter of timing."""


@st.composite
def _options(draw: Any, budget: bool = False) -> dict[str, Any]:
    options: dict[str, Any] = {"named": draw(st.sampled_from(["part", "other"]))}
    if draw(st.booleans()):
        options["key"] = draw(st.sampled_from("ab"))
    if draw(st.integers(0, 3)) == 0:
        options["window"] = draw(st.sampled_from([60, 90]))
    if budget:
        # Seconds enough and money that costs nothing: with them a child limits something, but not the tokens above.
        limits = {"tokens": st.integers(20, 150), "seconds": st.just(1e6), "cost_micros": st.integers(1, 9)}
        kinds = draw(st.sets(st.sampled_from(sorted(limits)), min_size=1))
        options["budget"] = {kind: draw(limits[kind]) for kind in sorted(kinds)}
    return options


@st.composite
def _slow(draw: Any) -> list[Any]:
    """What takes hours before anything else: an op, or a child that at most talks before it sleeps."""
    if draw(st.booleans()):
        return ["sleep", HOURS]
    talk = draw(st.lists(SAYS, max_size=2))
    return ["run", [*talk, ["sleep", HOURS], *draw(st.lists(PLAIN, max_size=1))], draw(_options())]


def _quick(depth: int, plain: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    """Ops that are done within seconds, and sure of it."""
    choices = [plain, plain]
    if depth:
        inner = _quick(depth - 1, plain)
        children = st.tuples(st.just("run"), _steps(depth - 1, plain), _options()).map(list)
        under = st.tuples(st.just("run"), LINES, _options(budget=True)).map(list)
        nested = st.lists(st.one_of(PLAIN, under), min_size=1, max_size=3)
        spenders = st.tuples(st.just("run"), st.one_of(LINES, nested), _options(budget=True)).map(list)
        together = st.lists(inner, min_size=1, max_size=3)
        choices += [
            children,
            children,
            spenders,
            st.tuples(st.just("gather"), together, st.just(True)).map(list),
            st.tuples(st.just("gather"), together, st.booleans()).map(list),
            st.tuples(st.just("timeout"), st.just(MINUTES), inner).map(list),
            _decided(inner),
        ]
    return st.one_of(choices)


@st.composite
def _decided(draw: Any, inner: Any) -> list[Any]:
    """A race between one that is quick and others that sleep for hours."""
    racers = draw(st.lists(_slow(), min_size=1, max_size=2))
    racers.insert(draw(st.integers(0, len(racers))), draw(inner))
    return ["first", racers]


def _steps(depth: int, plain: st.SearchStrategy[list[Any]] = PLAIN) -> st.SearchStrategy[list[Any]]:
    """Programs of quick steps: nothing in them waits for a clock to the end."""
    quick = _quick(depth, plain)
    choices = [quick, quick, plain, st.just(["raise"]), st.just(["cancel", [["sleep", HOURS]]])]
    if depth:
        choices += [
            st.tuples(st.just("spawn"), _steps(depth - 1, plain), _options()).map(list),
            st.tuples(st.just("join"), st.integers(0, 2)).map(list),
        ]
    return st.lists(st.one_of(choices), min_size=1, max_size=5)


@st.composite
def _slept(draw: Any, base: st.SearchStrategy[list[Any]]) -> list[Any]:
    """A program of quick steps, with sleeps and missed deadlines between them, at the top only."""
    steps = list(draw(base))
    missed = _slow().map(lambda op: ["timeout", MINUTES, op])
    for step in draw(st.lists(st.one_of(st.just(["sleep", 30.0]), missed), max_size=2)):
        steps.insert(draw(st.integers(0, len(steps))), step)
    return steps


def steady_programs() -> st.SearchStrategy[list[Any]]:
    """Settled programs that need no clock."""
    return _steps(2)


def programs(paying: bool = False) -> st.SearchStrategy[list[Any]]:
    """Settled programs, with sleeps and deadlines; with `paying`, also tools that must not act twice."""
    return _slept(_steps(2, PAYS if paying else PLAIN))


def loose_programs() -> st.SearchStrategy[list[Any]]:
    """Programs in which timing decides: races of equals, deadlines about as long as what they limit."""
    naps = st.tuples(st.just("sleep"), st.floats(0.0, 3.0)).map(list)

    def grow(inner: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
        together = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            st.tuples(st.just("run"), st.lists(inner, min_size=1, max_size=3), _options()).map(list),
            st.tuples(st.just("gather"), together, st.just(True)).map(list),
            st.tuples(st.just("first"), together).map(list),
            st.tuples(st.just("timeout"), st.floats(0.1, 3.0), inner).map(list),
        )

    ops = st.recursive(st.one_of(PLAIN, naps), grow, max_leaves=6)
    spawns = st.tuples(st.just("spawn"), st.lists(ops, min_size=1, max_size=3), _options()).map(list)
    cancels = st.tuples(st.just("cancel"), st.lists(ops, min_size=1, max_size=3)).map(list)
    joins = st.tuples(st.just("join"), st.integers(0, 2)).map(list)
    return st.lists(st.one_of(ops, ops, spawns, cancels, joins), min_size=1, max_size=5)
