"""What is too large for a window is kept whole beside it, and shown in part."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from invariants import check_log
from laws import config_for

from treering.events.codec import decode, text_digest
from treering.events.errors import Divergence
from treering.events.in_memory import InMemoryStore
from treering.runtime.prompts import Say
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine


async def asked(agent, window=120):
    """The store and run of an agent that finished, with the entries of its calls."""
    store = InMemoryStore()
    run = create_run(store, config_for("agent", window_tokens=window))
    async with Runner(store, run, ScriptedEngine(), agents={"agent": agent}) as runner:
        outcome = await runner.ask("tower")
    assert outcome.status == "finished", outcome.error
    check_log(store.read(run))
    async with Runner(store, run, agents={"agent": agent}, replay=True) as runner:
        assert [one.result for one in await runner.replay()] == [outcome.result]
    calls = [decode(record) for record in store.read(run, kinds=["ModelCalled"])]
    return store, run, [call.event.entries for call in calls if "~" not in call.header.task]


def text_of(entry):
    return "".join(entry.parts)


async def test_a_text_larger_than_the_window_is_kept_whole_and_shown_in_part():
    """The preview is the beginning, and says how much is not shown; the blob holds every character."""
    whole = " ".join(f"word{number}" for number in range(400))

    async def agent(task, goal):
        return (await task.generate(whole, max_tokens=10)).text

    store, _, (entries,) = await asked(agent)
    assert entries[0].spill is not None
    assert entries[0].spill.characters == len(whole)
    assert store.blob(entries[0].spill.blob) == whole
    shown, _, cut = text_of(entries[0]).partition("\n[cut: ")
    assert whole.startswith(shown)
    assert shown
    assert cut == f"{len(whole) - len(shown)} of {len(whole)} characters are not shown]"


@pytest.mark.parametrize("words", [60, 90, 300])
async def test_what_is_pinned_takes_room_from_what_is_not(words):
    """Beside a system prompt that stays whole, what no longer fits is spilled, also in the second call."""

    async def agent(task, goal):
        for number in range(3):
            await task.generate(f"{number} " + "w " * words, system="s " * 40, max_tokens=10)

    _, _, calls = await asked(agent)
    assert [entry.spill is None for entry in calls[0]] == [True, words < 66]
    assert [text_of(entry) for entry in calls[0] if entry.pinned] == ["s " * 40]
    assert all(entry.spill is not None or words == 60 for entries in calls[1:] for entry in entries)


async def test_several_parts_share_the_room_and_small_ones_stay_whole():
    """Only the large ones are cut, and each has the same part of what the small one leaves."""

    async def agent(task, goal):
        return (await task.generate([Say(("a " * 90,)), Say(("small",)), Say(("b " * 400,))], max_tokens=10)).text

    _, _, (entries,) = await asked(agent)
    assert [entry.spill is not None for entry in entries] == [True, False, True]
    assert abs(entries[0].tokens - entries[2].tokens) < 10


async def test_another_text_than_the_one_that_was_spilled_is_a_divergence():
    """Even where the previews would be as large, and also beyond what was shown."""
    said = ["w " * 500 + "END"]

    async def agent(task, goal):
        return (await task.generate(said[0], max_tokens=5)).text

    store, run, (entries,) = await asked(agent)
    assert entries[0].spill.blob == text_digest(said[0])
    said[0] = "w " * 500 + "OTHER"
    async with Runner(store, run, agents={"agent": agent}, replay=True) as runner:
        with pytest.raises(Divergence, match="op 1"):
            await runner.replay()
