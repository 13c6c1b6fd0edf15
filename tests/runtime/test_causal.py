"""What a task knows of sources and of the origins of memories depends on its own past, never on timing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from laws import config_for

from treering.events.catalogue import SourceSpan
from treering.events.codec import decode
from treering.events.errors import InputError
from treering.events.in_memory import InMemoryStore
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine


@pytest.fixture
def files(tmp_path):
    """Two small texts, by name."""
    found = {}
    for name in ("harbour", "mill"):
        path = tmp_path / f"{name}.txt"
        path.write_text(f"The lantern of the {name} is lit.")
        found[name] = str(path)
    return found


async def finish(agent, **inputs):
    """The result of one root, which replays."""
    store = InMemoryStore()
    run = create_run(store, config_for("agent", window_tokens=400))
    async with Runner(store, run, ScriptedEngine(), agents={"agent": agent}) as runner:
        outcome = await runner.ask("tower", inputs)
    assert outcome.status == "finished", outcome.error
    await replays(store, run, {"agent": agent})
    return outcome.result


async def replays(store, run, agents=None):
    async with Runner(store, run, agents=agents, replay=True) as runner:
        assert {outcome.status for outcome in await runner.replay()} == {"finished"}


async def test_origins_that_come_later_are_not_known_before():
    """What a replay has read further on does not show where the first run had not come to it."""

    async def agent(task, goal):
        kept = await task.remember("The harbour is deep.", sources=[SourceSpan("s", 0, 1)])
        await task.generate(f"{len(task.provenance(kept))} origins", max_tokens=5)
        later = task.remember("The harbour is deep.", sources=[SourceSpan("s", 2, 3)])
        made = len(task.provenance(kept))  # made, and not yet awaited
        await later
        return [made, len(task.provenance(kept))]

    assert await finish(agent) == [1, 2]


async def test_sources_that_come_later_are_not_known_before(files):
    """Also those of an op that is made and not awaited."""

    async def agent(task, goal):
        await task.add_input(files["harbour"])
        await task.generate(f"{len(task.sources)} sources", max_tokens=5)
        later = task.add_input(files["mill"])
        made = len(task.sources)
        await task.gather(later)
        return [made, len(task.sources), len(await task.recall("lantern", over="sources"))]

    assert await finish(agent) == [1, 2, 2]


async def test_a_digest_of_one_input_after_another_replays(files):
    """Two roots on two inputs: the first sees one, the second both."""
    store = InMemoryStore()
    run = create_run(store, config_for("digest", window_tokens=2000))
    async with Runner(store, run, ScriptedEngine()) as runner:
        for name in ("harbour", "mill"):
            assert (await runner.ask("shorten", {"paths": [files[name]]})).status == "finished"
    await replays(store, run)


@pytest.mark.parametrize("wait_s", [0.0, 0.2])
async def test_siblings_do_not_see_each_others_sources_until_they_are_joined(files, wait_s):
    """Whoever is quicker: a recall beside it finds nothing of it, one after the join does."""

    async def adder(task, goal):
        await task.sleep(wait_s)
        await task.add_input(files["mill"])

    async def looker(task, goal):
        await task.sleep(0.1)
        hits = await task.recall("lantern mill", over="sources")
        return [[hit.name, hit.score] for hit in hits], len(task.sources)

    async def agent(task, goal):
        await task.add_input(files["harbour"])
        alone = [[hit.name, hit.score] for hit in await task.recall("lantern mill", over="sources")]
        adds, looks = task.spawn(adder, "add"), task.spawn(looker, "look")
        seen, sources = await looks
        await adds
        after = await task.recall("lantern mill", over="sources")
        return alone == seen, len(seen), sources, len(after), len(task.sources)

    assert await finish(agent) == [True, 1, 1, 2, 2]


@pytest.mark.parametrize("wait_s", [0.02, 0.3])
async def test_siblings_do_not_see_each_others_origins_until_they_are_joined(wait_s):
    """The same text kept by both: each knows its own origin, the parent knows both, in one order."""

    async def keeper(task, goal, wait_s, source):
        await task.sleep(wait_s)
        kept = await task.remember("The mill is old.", sources=[SourceSpan(source, 0, 1)])
        await task.sleep(0.1)
        return [ref.source for ref in task.provenance(kept)], kept.id

    async def agent(task, goal):
        one = task.spawn(keeper, "a", wait_s=wait_s, source="p")
        other = task.spawn(keeper, "b", wait_s=0.15, source="q")
        (first, id), (second, _) = await task.gather(one, other)
        hits = await task.recall("mill", over="memory")
        return first, second, [ref.source for ref in task.provenance(hits[0].ref)], hits[0].ref.id == id

    assert await finish(agent) == [["p"], ["q"], ["p", "q"], True]


async def test_a_child_sees_what_was_done_when_it_began(files):
    """Not what its parent had only made by then, and does beside it."""

    async def looker(task, goal, wait_s):
        await task.sleep(wait_s)
        return len(task.sources)

    async def agent(task, goal):
        later = task.add_input(files["harbour"])
        child = task.spawn(looker, "look", wait_s=0.1)
        _, seen = await task.gather(later, child)
        return seen, await task.spawn(looker, "look again", wait_s=0.0)

    assert await finish(agent) == [0, 1]


async def test_an_input_that_cannot_be_read_is_an_outcome(files, tmp_path):
    """It is recorded with its reason, what follows it is applied, and a replay does not look at the disk again."""
    missing = tmp_path / "later.txt"

    async def agent(task, goal):
        try:
            await task.add_input(str(missing))
        except InputError as error:
            said = str(error)
        await task.add_input(files["mill"])
        await task.remember("The mill is old.")
        missing.write_text("Now it is there.")
        return said, len(task.sources), len(await task.recall("mill"))

    said, sources, hits = await finish(agent)
    assert (sources, hits) == (1, 2)
    assert "later.txt" in said


async def test_a_replay_names_headings_and_searches_nothing(tmp_path):
    """What hits are about is read from the text that they stand in; the postings are for who searches."""
    path = tmp_path / "manual.md"
    path.write_text("# Lamps\n\nThe lantern is lit at dusk.\n\n# Boats\n\nThe boat is tarred in May.\n")
    found = []

    async def agent(task, goal):
        await task.add_input(str(path))
        hits = await task.recall("lantern", over="sources")
        found.append([(hit.name, hit.heading, hit.text) for hit in hits])

    store = InMemoryStore()
    run = create_run(store, config_for("agent"))
    async with Runner(store, run, ScriptedEngine(), agents={"agent": agent}) as runner:
        await runner.ask("tower")
    async with Runner(store, run, agents={"agent": agent}, replay=True) as runner:
        await runner.replay()
        assert len(runner.recaller.index(runner.state)._passages) == 0
    assert found[0] == found[1]
    assert found[0][0][:2] == ("manual.md", "Lamps")


async def test_a_long_query_is_recorded_with_a_mark_of_what_is_cut():
    """Nothing is cut in silence, and a query of usual length is whole."""
    query = "where is the lantern " * 200

    async def agent(task, goal):
        await task.recall(query)
        await task.recall(query[:2000])

    store = InMemoryStore()
    run = create_run(store, config_for("agent"))
    async with Runner(store, run, ScriptedEngine(), agents={"agent": agent}) as runner:
        await runner.ask("tower")
    long, usual = [decode(record).event.query for record in store.read(run, kinds=["Recalled"])]
    assert usual == query[:2000]
    assert long == f"{usual}\n[cut: 2200 of 4200 characters are not shown]"
