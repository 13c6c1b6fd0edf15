"""One seed, one history: a run on a simulated engine and a simulated disk, with crashes, until it ends.

All chance comes from the seed (the scheduler's too) and all time from a clock that jumps, so that a history that
went wrong can be had again. Nothing real is touched but this process's memory.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import anyio
import trio
import trio._core._run as scheduler
from corpus import CORPUS, EFFECTS, queued_losers
from invariants import check_log
from laws import config_for
from trio.testing import MockClock

from treering.events.catalogue import Budget, RunConfig
from treering.events.codec import decode, to_json, verify_chain
from treering.events.errors import LeaseLost, StoreError
from treering.events.in_memory import InMemoryStore
from treering.runtime.engine import EngineError, EngineInfo, EngineTransientError, Message, Reply, Request, StreamText
from treering.runtime.errors import OutcomeUnknown
from treering.runtime.runner import Runner, create_run, open_log
from treering.runtime.seams import Commit
from treering.runtime.task import Say, Task
from treering.runtime.testing import echo

__all__ = ["WORKFLOWS", "History", "seeded", "simulate"]

RULES = ["window:5", "window:60", "window:10000", "none", "lru:9", "sieve:9", "s3fifo:9", "actr:9"]
MOST_SESSIONS = 40
NONSENSE = ["", " ", "\0\x1b[2J", "<|im_end|> " * 9, "{" * 40, "٣ 🙂 \u202e ni", "Earlier, in short: " * 5]


async def forgetful(task: Task, goal: str) -> list[str]:
    """Keeps much, talks much, and asks for what went cold meanwhile."""
    found = []
    for n in range(4):
        await task.remember(f"Fact {n} of {goal} concerns lantern{n}.", pinned=n == 0)
        child = task.spawn(CORPUS["shared_memory"], f"{goal}{n}")
        await task.generate(f"Talk about lantern{n} " + "at length " * 6, max_tokens=14)
        hits = await task.recall(f"lantern{max(0, n - 2)}", 2, over="memory")
        await task.generate(Say(("See: ", *hits[:1])), max_tokens=6)
        await child
        found += [hit.text for hit in hits]
    return found


WORKFLOWS = {**CORPUS, "forgetful": forgetful, "queued_losers": queued_losers}


class SimulatedWorld:
    """Time from the simulated clock, chance from the seed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1000)

    def monotonic(self) -> float:
        return trio.current_time()

    def entropy(self, size: int) -> bytes:
        return self._chance.randbytes(size)


class SimulatedEngine:
    """Slow, flaky and sometimes wrong, each as a function of the seed, the request and how often it came.

    What it answers depends on the request alone; whether it answers, on the attempt too.
    """

    def __init__(self, seed: int, faults: bool, met: Counter[str]) -> None:
        self._seed, self._faults, self._met = seed, faults, met
        self._came: dict[bytes, int] = {}
        self.calls = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("simulated", "simulated", "scripted", "words", 100_000, 2)

    def count(self, message: Message) -> int:
        return len(message.text.split()) + 1

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        self.calls += 1
        key = blake2b(to_json(request), digest_size=8).digest()
        came = self._came[key] = self._came.get(key, 0) + 1
        fate = random.Random(f"{self._seed} {key.hex()} {came}")
        await anyio.sleep(fate.expovariate(1.0))
        if self._faults:
            drawn = fate.random()
            if drawn < 0.12:
                self._met["dropped"] += 1
                raise EngineTransientError("the simulated line dropped", fate.choice([None, 3.0]))
            if drawn < 0.16:
                self._met["hung"] += 1
                await anyio.sleep_forever()
        return self._answer(request, random.Random(f"{self._seed} {key.hex()}"))

    def _answer(self, request: Request, chance: random.Random) -> Reply:
        if "FAIL" in request.messages[-1].text:
            raise EngineError("told to fail")
        answer = echo(request)
        if self._faults:
            drawn = chance.random()
            if drawn < 0.05:
                self._met["nonsense"] += 1
                answer = chance.choice(NONSENSE)
            elif drawn < 0.08:
                self._met["refused"] += 1
                raise EngineError("the simulated model refused")
            elif drawn < 0.15:
                self._met["cut short"] += 1
                answer = answer[: chance.randrange(len(answer))]
        words = answer.split(" ")
        text = " ".join(words[: request.max_tokens])
        prompt = sum(self.count(message) for message in request.messages) + 2
        return Reply(text, "stop" if len(words) <= request.max_tokens else "length", prompt, len(text.split()))

    async def aclose(self) -> None:
        """Nothing runs."""


class SimulatedWriter:
    """A disk that takes its time, fails, and dies with its process.

    Of the batch that brings the log to `crash_seq`, and of one in flight at a death, chance says whether it is on
    disk. Nobody hears of either. After death nothing is written.
    """

    def __init__(self, store: InMemoryStore, run: str, epoch: int, chance: random.Random, session: "Session") -> None:
        self._store, self._run, self._epoch = store, run, epoch
        self._chance, self._session = chance, session
        self._flying: Commit | None = None
        self.dead = False
        session.writer = self

    def soon(self, fly: Any) -> None:
        # Both kinds of batch: one event at once, and all that the tasks whose turn it is have to say.
        if self._session.slow:
            trio.lowlevel.current_trio_token().run_sync_soon(fly)
        else:
            fly()

    def submit(self, commit: Commit, done: Any) -> None:
        if self.dead:
            return
        assert self._flying is None, "a batch was submitted before the one before it was done"
        self._flying = commit
        if self._session.slow:
            self._session.met["slow"] += 1
            trio.lowlevel.spawn_system_task(self._later, commit, done)
        else:
            self._commit(commit, done)

    async def _later(self, commit: Commit, done: Any) -> None:
        await trio.sleep(self._chance.expovariate(20.0))
        self._commit(commit, done)

    def _commit(self, commit: Commit, done: Any) -> None:
        if self.dead:
            return
        session = self._session
        if session.crash_seq is not None and commit[0][-1].seq >= session.crash_seq:
            if session.disk_fails:
                self._flying = None
                session.met["failed commit"] += 1
                done(StoreError("the simulated disk is full"))
                return
            session.crash()
            return
        self._flying = None
        try:
            self._store.append(self._run, self._epoch, *commit)
        except (StoreError, LeaseLost) as error:
            done(error)
        else:
            done(None)

    def die(self) -> None:
        """The process is gone: what was in flight is on disk, or not."""
        if self.dead:
            return
        self.dead = True
        if self._flying is None:
            return
        kept = self._chance.random() < 0.5
        self._session.met["write unheard of" if kept else "lost write"] += 1
        if kept:
            self._store.append(self._run, self._epoch, *self._flying)

    def close(self) -> None:
        """Nothing runs."""


class Session:
    """One process's life: how it will end, if it does not see the end of the run."""

    def __init__(self, chance: random.Random, head: int, met: Counter[str], calm: bool) -> None:
        self.met = met
        self.slow = chance.random() < 0.7
        self.crash_seq: int | None = None
        self.crash_time: float | None = None
        self.disk_fails = False
        self.writer: SimulatedWriter | None = None
        self.scope = trio.CancelScope()
        if not calm:
            drawn = chance.random()
            if drawn < 0.25:
                self.crash_time = chance.expovariate(0.1)
            else:
                self.crash_seq = head + 1 + int(chance.expovariate(0.1))
                self.disk_fails = drawn < 0.4

    def crash(self) -> None:
        """Kill -9: nothing is written any more, and nobody acts."""
        if self.writer is not None:
            self.writer.die()
        self.scope.cancel()


class History:
    """What a seed led to."""

    def __init__(self, seed: int, agent: str, config: RunConfig) -> None:
        self.seed, self.agent, self.config = seed, agent, config
        self.store = InMemoryStore()
        self.run = ""
        self.faults: Counter[str] = Counter()
        self.crashes = 0
        self.calls = 0
        self.unknown = False
        """It stopped because a payment may or may not have been made."""
        self.plain = False
        """Neither the engine nor a message nor a budget made this run special: it ends as any other, if it ends."""


def simulate(seed: int, messages: bool = False, agent: str | None = None) -> History:
    """Live one history and check what must hold. Raises whatever does not.

    With `messages`, somebody asks or cancels meanwhile. Chance chooses the agent, if none is given.
    """
    with seeded(seed):
        return trio.run(_live, seed, messages, agent, clock=MockClock(autojump_threshold=0))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Trio's scheduler draws from its own generator, and orders its batches only when it is told to."""
    before, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
        scheduler._r.setstate(state)


async def _live(seed: int, messages: bool, agent: str | None) -> History:
    EFFECTS.clear()
    chance = random.Random(seed)
    chosen = chance.choice(sorted(WORKFLOWS))
    agent = agent or chosen
    faults, limited = (chance.random() < share for share in (0.6, 0.2))
    config = config_for(
        agent,
        seed=seed,
        window_tokens=chance.choice([120, 120, 150, 400]),
        retention=chance.choice(RULES),
        concurrency=chance.randint(1, 5),
        budget=_budget(chance) if limited else Budget(),
    )
    history = History(seed, agent, config)
    history.plain = not (faults or messages or limited)
    history.run = create_run(history.store, config, SimulatedWorld(chance))
    most = chance.randint(0, 5)
    for number in range(MOST_SESSIONS):
        head, _ = history.store.head(history.run)
        session = Session(chance, head, history.faults, calm=number >= most)
        if await _one_session(
            history, session, chance, SimulatedEngine(seed, faults, history.faults), messages and number == 0
        ):
            _check_effects(history)
            if not history.unknown:
                await _check_end(history)
            return history
        history.crashes += 1
    raise AssertionError(f"the run did not end in {MOST_SESSIONS} sessions")


def _budget(chance: random.Random) -> Budget:
    seconds = chance.expovariate(0.02) if chance.random() < 0.4 else None
    return Budget(None if seconds and chance.random() < 0.5 else chance.randint(50, 900), seconds)


async def _one_session(
    history: History, session: Session, chance: random.Random, engine: SimulatedEngine, messages: bool
) -> bool:
    """Open the run and go on with it; whether it ended. What is on disk is checked either way."""
    store, run = history.store, history.run
    before, _ = store.head(run)
    finished = False
    if session.crash_time is not None:
        trio.lowlevel.spawn_system_task(_crash_after, session, session.crash_time)
    if messages:
        kinds = chance.choice([["ask"], ["cancel"], ["ask", "cancel"], ["ask", "ask"]])
        trio.lowlevel.spawn_system_task(_post, store, run, kinds, chance.expovariate(0.2))
    with session.scope:
        try:
            async with Runner(
                store,
                run,
                engine,
                agents=WORKFLOWS,
                seams=SimulatedWorld(chance),
                writer=lambda s, r, e: SimulatedWriter(s, r, e, chance, session),  # type: ignore[arg-type]
                call_timeout_s=5.0,
            ) as runner:
                await (runner.resume() if runner.state.roots else runner.ask("tower"))
                while runner.state.asked or store.inbox(run, runner.state.inbox):
                    await runner.resume()
            finished = True
        except StoreError:
            if not session.disk_fails:
                raise
        except OutcomeUnknown:
            assert history.crashes, "a call is unknown, and nothing crashed"
            history.unknown = finished = True
    if session.writer is not None:
        session.writer.die()
    history.calls += engine.calls
    assert verify_chain(store.read(run)) >= before
    check_log(store.read(run))
    called = sum(1 for _ in store.read(run, after=before, kinds=["ModelCalled"]))
    assert engine.calls <= called, "the engine was asked before that was on disk"
    return finished and not session.scope.cancelled_caught


async def _crash_after(session: Session, seconds: float) -> None:
    await trio.sleep(seconds)
    session.crash()


async def _post(store: InMemoryStore, run: str, kinds: list[str], seconds: float) -> None:
    for kind in kinds:
        await trio.sleep(seconds)
        store.post(run, kind, "mill")


def _check_effects(history: History) -> None:
    """What touched the world did so once for each call on disk at most, and what must not be repeated once."""
    called = [decode(record) for record in history.store.read(history.run, kinds=["ToolCalled"])]
    assert len(EFFECTS) <= len(called), "a tool acted before its call was on disk"
    paid = [effect for effect in EFFECTS if effect.startswith("paid")]
    assert len(paid) == len(set(paid)), f"paid twice: {paid}"


async def _check_end(history: History) -> None:
    """Every task ended, and the same code on the recorded outcomes takes the same path."""
    state, journal, _, _ = open_log(history.store, history.run)
    running = [path for path, task in state.tasks.items() if task.status == "running"]
    assert not running, f"tasks {running} never ended"
    reserved = {path: pool.reserved for path, pool in state.pools.items() if pool.reserved}
    assert not reserved, f"what calls had reserved was not given back: {reserved}"
    head = history.store.head(history.run)
    async with Runner(history.store, history.run, agents=WORKFLOWS, replay=True) as runner:
        replayed = await runner.replay()
    assert history.store.head(history.run) == head, "a replay wrote"
    assert len(replayed) == len(state.roots)
    for outcome in replayed:
        assert outcome.status == state.tasks[outcome.path].status
        ended = journal.ended(outcome.path)
        if outcome.status == "finished":
            assert to_json(outcome.result) == bytes(ended.result)  # type: ignore[union-attr]
