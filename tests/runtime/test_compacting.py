"""What stays verbatim when a window is compacted, and compacting for its own sake."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from invariants import check_log
from laws import CrashingWriter, assert_equal, config_for, equal_view

from treering.events.codec import decode
from treering.events.errors import StoreError
from treering.events.in_memory import InMemoryStore
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine

GOAL = "find the purple elephant please"


async def live(store, run, agent, engine, last=None):
    writer = None if last is None else lambda s, r, e: CrashingWriter(s, r, e, last)
    async with Runner(store, run, engine, agents={"agent": agent}, writer=writer) as runner:
        outcome = await (runner.resume() if runner.state.roots else runner.ask(GOAL))
    assert outcome.status == "finished", outcome.error
    return outcome.result


async def finish(agent, window=120):
    """The result, the texts of the prompts of the task itself, and the log, which replays."""
    store, engine = InMemoryStore(), ScriptedEngine()
    run = create_run(store, config_for("agent", window_tokens=window))
    result = await live(store, run, agent, engine)
    check_log(store.read(run))
    async with Runner(store, run, agents={"agent": agent}, replay=True) as runner:
        assert [one.result for one in await runner.replay()] == [result]
    prompts = [[message.text for message in request.messages] for request in engine.requests]
    return result, [texts for texts in prompts if not texts[0].startswith("You shorten")], (store, run)


async def talks(task, goal):
    await task.generate(goal, max_tokens=10)
    for step in range(9):
        await task.generate(f"step {step} " + "w " * 20, max_tokens=10)


async def test_the_goal_stays_verbatim_over_every_compaction():
    """It is in each prompt, word by word, though what said it has left."""
    _, prompts, (store, run) = await finish(talks)
    receipts = [decode(record).event for record in store.read(run, kinds=["Compacted"])]
    assert len(receipts) > 2
    assert all(any(GOAL in text for text in texts) for texts in prompts)
    assert all(receipt.summary.count(GOAL) == 1 for receipt in receipts)


async def test_a_goal_that_no_window_can_hold_does_not_end_the_task():
    """What does not fit is summarised as all else."""

    async def agent(task, goal):
        await task.generate(goal, max_tokens=10)
        for step in range(4):
            await task.generate(f"step {step} " + "w " * 30, max_tokens=10)

    store = InMemoryStore()
    run = create_run(store, config_for("agent", window_tokens=100))
    async with Runner(store, run, ScriptedEngine(), agents={"agent": agent}) as runner:
        assert (await runner.ask("g " * 70)).status == "finished"
    check_log(store.read(run))


async def test_the_newest_exchange_stays_verbatim_where_it_fits():
    """A call sees word by word what was said just before it."""
    _, prompts, _ = await finish(talks, window=140)
    for before, now in itertools.pairwise(prompts):
        assert before[-1] in now


async def test_an_agent_compacts_its_window_when_it_wants_to():
    """All but pins and the newest exchange leave; what this freed is the op's outcome; nothing more to free is none."""

    async def agent(task, goal):
        for step in range(3):
            await task.generate(f"{goal} {step} " + "w " * 10, system="Be kind.", max_tokens=10)
        freed = await task.compact()
        await task.generate("and now?", max_tokens=8)
        return freed, (await task.gather(task.compact(), task.generate("beside it", max_tokens=8)))[0] > 0

    (freed, more), prompts, (store, run) = await finish(agent, window=400)
    assert freed > 0
    assert more
    (receipt, _) = [decode(record).event for record in store.read(run, kinds=["Compacted"])]
    assert receipt.tokens_left - receipt.tokens == freed
    assert prompts[3][0] == "Be kind."
    assert prompts[3][1] == receipt.summary
    assert prompts[3][2].startswith(f"{GOAL} 2")


@pytest.mark.parametrize("again", range(2, 16))
async def test_a_compaction_that_was_cut_short_is_taken_up(again):
    """After a crash at any event, the window is the same, and what was freed too."""

    async def agent(task, goal):
        for step in range(3):
            await task.generate(f"{goal} {step} " + "w " * 10, max_tokens=10)
        freed = await task.compact()
        return freed, (await task.generate("and now?", max_tokens=8)).text

    store = InMemoryStore()
    whole, run = (create_run(store, config_for("agent", window_tokens=400)) for _ in range(2))
    await live(store, whole, agent, ScriptedEngine())
    with pytest.raises(StoreError):
        await live(store, run, agent, ScriptedEngine(), last=again)
    await live(store, run, agent, ScriptedEngine())
    assert_equal(equal_view(store, whole), equal_view(store, run))
    check_log(store.read(run))
