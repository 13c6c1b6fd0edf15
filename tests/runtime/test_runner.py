"""The runner: which agent a root has, what it records of its opening, and what it does about those who watch."""

import sys
from pathlib import Path

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from laws import config_for, fresh, headers

from treering.events.catalogue import Limits
from treering.events.codec import decode
from treering.events.sqlite import SQLiteStore
from treering.replays.verifying import verify
from treering.runtime.runner import Runner, create_run, open_log
from treering.runtime.testing import ScriptedEngine


async def says_a(task, goal):
    return (await task.generate("A", max_tokens=5)).text


async def says_b(task, goal):
    return (await task.generate("B", max_tokens=5)).text


AGENTS = {"a": says_a, "b": says_b}


async def test_a_replay_runs_each_root_with_its_own_agent():
    """The run's first agent is not everybody's; a configuration with another one replaces them."""
    store, run = fresh("a")
    async with Runner(store, run, ScriptedEngine(), agents=AGENTS) as runner:
        asked = [await runner.ask("one"), await runner.ask("two", agent="b")]
    async with Runner(store, run, agents=AGENTS, replay=True) as runner:
        assert await runner.replay() == asked
    other = {**AGENTS, "c": says_a}
    async with Runner(store, run, agents=other, replay=True, config=config_for("c")) as runner:
        with pytest.raises(Exception, match="asked for something else"):
            await runner.replay()


async def test_a_configuration_that_acts_is_recorded():
    """Also the one that is given as a run is opened first: without it, its evictions would follow from nothing."""

    async def keeps(task, goal):
        await task.remember("a b c")
        await task.generate("word " * 20, max_tokens=5)

    store, run = fresh("keeps")
    config = config_for("keeps", retention="window:5")
    async with Runner(store, run, ScriptedEngine(), agents={"keeps": keeps}, config=config) as runner:
        await runner.ask("go")
    assert [at.kind for at in headers(store.read(run))][:2] == ["RunStarted", "RunResumed"]
    assert "Evicted" in [at.kind for at in headers(store.read(run))]
    assert open_log(store, run)[0].config == config
    verify(store, run)
    store, run = fresh("keeps")
    async with Runner(store, run, ScriptedEngine(), agents={"keeps": keeps}, config=config_for("keeps")) as runner:
        await runner.ask("go")
    assert "RunResumed" not in [at.kind for at in headers(store.read(run))]  # the same is not said again


@pytest.mark.parametrize("store_kind", ["memory", "sqlite"])
async def test_an_observer_that_raises_is_dropped_and_the_run_goes_on(store_kind, tmp_path, capsys):
    """Its error is reported once; the others hear of every event."""
    if store_kind == "memory":
        store, run = fresh("a")
    else:
        store = SQLiteStore(tmp_path / "log.db")
        run = create_run(store, config_for("a"))
    seen = []

    def bad(header, event):
        raise ValueError("the display broke")

    def good(header, event):
        seen.append(header.seq)

    with anyio.fail_after(10):
        async with Runner(store, run, ScriptedEngine(), agents=AGENTS, observers=[bad, good]) as runner:
            outcome = await runner.ask("go")
    assert outcome.status == "finished"
    assert seen == list(range(2, store.head(run)[0] + 1))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("an observer raised") == 1
    assert "the display broke" in said.err


async def test_a_cancel_costs_what_is_below_it():
    """Not all that the run ever held: ten times the tasks that ended before make it no slower."""

    async def leaf(task, goal):
        await task.sleep(1000.0)

    async def branch(task, goal):
        await task.gather(task.spawn(leaf, "one"), task.spawn(leaf, "two"))

    async def root(task, goal):
        for n in range(30):
            child = task.spawn(branch, str(n))
            await task.sleep(0.02)
            assert await child.cancel()

    store, run = fresh("root", limits=Limits(children=1000, tasks=1000))
    async with Runner(store, run, ScriptedEngine(), agents={"root": root}) as runner:
        looked = Counting(runner.state.tasks)
        runner.state.tasks = looked
        outcome = await runner.ask("go")
    assert outcome.status == "finished", outcome.error
    ended = [decode(record).header.task for record in store.read(run, kinds=["TaskCancelled"])]
    assert ended == [path for n in range(1, 31) for path in (f"1.{n}.2", f"1.{n}.1", f"1.{n}")]
    assert looked.walks == 0
    assert all(not task.running for task in runner.state.tasks.values())


class Counting(dict):
    """Tasks by path that tell how often somebody went through all of them."""

    walks = 0

    def items(self):
        self.walks += 1
        return super().items()

    def values(self):
        self.walks += 1
        return super().values()
