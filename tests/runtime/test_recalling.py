"""Looking things up inside a run: filters, the log itself, what was used, and queries that nobody meant."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from laws import Steady, script

from treering.events.catalogue import HitRecord, LogSpan, MemoryRef, Recalled, RunConfig, SourceSpan, Used
from treering.events.codec import decode, to_json
from treering.events.errors import Divergence, UsageError
from treering.events.in_memory import InMemoryStore
from treering.memory.hierarchy import memory_id
from treering.memory.recall import Query
from treering.runtime.digests import plain_digest
from treering.runtime.runner import Runner, create_run
from treering.runtime.task import Say, Task
from treering.runtime.testing import ScriptedEngine


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def live(*agents: Any, inputs: dict[str, Any] | None = None) -> tuple[Any, InMemoryStore, str]:
    """The first agent's result, each further one as the next root; the store and the run."""
    store = InMemoryStore()
    config = RunConfig(
        "a0", window_tokens=400, retention="window:200", weights="scripted", template="words", overhead_tokens=2
    )
    run = create_run(store, config, Steady())
    known = {f"a{at}": agent for at, agent in enumerate(agents)}
    async with Runner(store, run, ScriptedEngine(script), agents=known, seams=Steady()) as runner:
        for name in known:
            outcome = await runner.ask("go", inputs, name)
            assert outcome.status == "finished", outcome.error
    return outcome.result, store, run


def recalled(store: InMemoryStore, run: str) -> list[Recalled]:
    return [decode(record).event for record in store.read(run, kinds=["Recalled"])]  # type: ignore[misc]


async def keep(task: Task, goal: str) -> None:
    await task.remember(goal)


async def test_filters_by_task_source_and_age(tmp_path):
    """A memory is found by who wrote it, from what and when; a source by its name."""
    (tmp_path / "harbour.md").write_text("The lamp in the harbour burns oil.")
    (tmp_path / "mill.md").write_text("The lamp in the mill burns wax.")

    async def agent(task: Task, goal: str, paths: list[str]) -> Any:
        sources = [await task.add_input(path) for path in paths]
        first = await task.remember("lamp one", sources=[SourceSpan(sources[0].source, 4, 8)])
        await task.remember("lamp two", sources=[first])
        await task.generate("word " * 50, max_tokens=5)
        await task.spawn(keep, "lamp three")
        await task.generate("word " * 20, max_tokens=5)

        async def found(**filters: Any) -> list[str]:
            return sorted(hit.text for hit in await task.recall("lamp", 9, **filters))

        hit = (await task.recall("lamp one", 1, over="memory"))[0]
        assert (hit.task, hit.refs) == ("1", (SourceSpan(sources[0].source, 4, 8),))
        return [
            await found(over="memory"),
            await found(task="1.1"),
            await found(source="harbour.md"),
            await found(source=sources[1].source, over="memory"),
            await found(min_age_tokens=40, over="memory"),
            await found(max_age_tokens=40),
            await found(source="nowhere"),
        ]

    result, _, _ = await live(agent, inputs={"paths": [str(tmp_path / "harbour.md"), str(tmp_path / "mill.md")]})
    every = ["lamp one", "lamp three", "lamp two"]
    harbour = ["The lamp in the harbour burns oil.", "lamp one", "lamp two"]
    assert result == [every, ["lamp three"], harbour, [], ["lamp one", "lamp two"], ["lamp three"], []]


async def test_a_source_that_a_sibling_reads_is_not_seen_until_it_is_joined(tmp_path):
    """What a task finds in sources never depends on how far others have come."""
    (tmp_path / "harbour.md").write_text("The lamp burns oil.")

    async def read(task: Task, goal: str) -> None:
        await task.add_input(goal)

    async def look(task: Task, goal: str) -> list[str]:
        await task.sleep(0.01)
        return [hit.name for hit in await task.recall("lamp")] + [source.name for source in task.sources]

    async def agent(task: Task, goal: str, path: str) -> Any:
        reader, other = task.spawn(read, path), task.spawn(look, "look")
        before = await other
        await reader
        return [before, await task.spawn(look, "again"), [source.name for source in task.sources]]

    result, store, run = await live(agent, inputs={"path": str(tmp_path / "harbour.md")})
    kinds = [decode(record).header.kind for record in store.read(run)]
    assert kinds.index("InputAdded") < kinds.index("Recalled")
    assert result == [[], ["harbour.md", "harbour.md"], ["harbour.md"]]


async def test_deep_finds_what_left_the_windows_of_this_and_other_roots():
    """Prompts, replies, summaries and results of tools, by reference to their op; nothing of a running child."""

    async def weigh(name: str) -> str:
        return f"the {name} weighs nine stone"

    async def before(task: Task, goal: str) -> None:
        await task.generate("The cellar holds a parrot named Admiral.", max_tokens=12)
        await task.call(weigh, name="anvil")

    async def whisper(task: Task, goal: str) -> None:
        await task.generate("A parrot is whispered about.", max_tokens=6)
        await task.sleep(0.05)

    async def agent(task: Task, goal: str) -> Any:
        child = task.spawn(whisper, "go")
        await task.sleep(0.01)
        shallow = await task.recall("parrot anvil", 9)
        hits = await task.recall("parrot anvil", 9, deep=True)
        await task.generate(Say(("Earlier: ", *hits[:1])), max_tokens=6)
        await child
        after = await task.recall("parrot", 9, deep=True, task=child.path)
        return [shallow, [(hit.tier, hit.task, hit.ref.what, hit.text) for hit in hits], [hit.text for hit in after]]

    result, store, run = await live(before, agent)
    shallow, hits, after = result
    assert shallow == []
    assert ["log", "1", "prompt", "The cellar holds a parrot named Admiral."] in hits
    assert ["log", "1", "result", "the anvil weighs nine stone"] in hits
    assert {hit[2] for hit in hits} == {"prompt", "reply", "result"}
    assert all(hit[1] == "1" for hit in hits)
    assert "A parrot is whispered about." in after
    refs = [hit.ref for hit in recalled(store, run)[1].hits]
    assert all(isinstance(ref, LogSpan) for ref in refs)


async def test_what_is_only_shown_is_accessed_once_it_is_used():
    """With `access=False` a hit counts when it enters the window by reference or is named by `use`; else not."""

    async def agent(task: Task, goal: str) -> None:
        for text in ("lamp one", "lamp two", "lamp three"):
            await task.remember(text)
        hits = {hit.text: hit for hit in await task.recall("lamp", access=False)}
        await task.generate(Say(("See ", hits["lamp one"])), max_tokens=4)
        await task.use(hits["lamp two"])
        await task.generate("lamp three, as text", max_tokens=4)

    _, store, run = await live(agent)
    async with Runner(store, run, replay=True) as runner:
        counts = {memory.text: memory.count for memory in runner.state.memory.memories.values()}
    assert counts == {"lamp one": 1, "lamp two": 1, "lamp three": 0}
    assert not recalled(store, run)[0].accessed
    used = [decode(record).event for record in store.read(run, kinds=["Used"])]
    assert [one.refs for one in used if isinstance(one, Used)] == [(MemoryRef(memory_id("lamp two")),)]


async def test_a_request_covers_its_filters_and_one_without_is_as_it_was():
    """Another filter is another request, and stops a replay; logs from before there were filters go on."""

    def agent_with(**filters: Any) -> Any:
        async def agent(task: Task, goal: str) -> None:
            await task.recall("lamp", 3, over="memory", **filters)

        return agent

    asked = {}
    every: list[dict[str, Any]] = [
        {},
        {"task": "1"},
        {"source": "a"},
        {"deep": True},
        {"access": False},
        {"min_age_tokens": 1},
        {"max_age_tokens": 9},
    ]
    for filters in every:
        _, store, run = await live(agent_with(**filters))
        asked[str(filters)] = recalled(store, run)[0].request
        other = {"deep": True} if filters != {"deep": True} else {}
        async with Runner(store, run, agents={"a0": agent_with(**other)}, replay=True) as runner:
            with pytest.raises(Divergence):
                await runner.replay()
    assert len(set(asked.values())) == len(every)
    assert asked["{}"] == plain_digest("recall", "lamp", 3, "memory")


def test_an_older_recall_loads_as_one_that_accessed_its_hits():
    """The fields that were added have the meaning of before as their default."""
    body = b'{"query":"q","hits":[{"ref":{"type":"memory","id":"m"},"score":1.0,"tier":"hot"}]}'
    event = msgspec.json.decode(body, type=Recalled)
    assert event == Recalled("q", (HitRecord(MemoryRef("m"), 1.0, "hot"),), "", True)
    assert msgspec.json.decode(to_json(event), type=Recalled) == event


async def test_queries_that_nobody_meant():
    """Nothing, white space, stop words alone and a million characters give hits or none, and stop nothing."""

    async def agent(task: Task, goal: str) -> Any:
        await task.remember("to be or not to be")
        await task.remember("the keeper of the lamp")
        long = [
            "lamp " + " ".join(f"w{at}" for at in range(140_000)),
            "lamp " + "x" * 1_000_000,
            "lamp " + "aB" * 500_000,
            "lamp " + "a." * 500_000,
            "lamp " + "灯" * 1_000_000,
            "lamp " + "\0" * 1_000_000,
        ]
        found = []
        for query in ("", " \n ", "?!", "who was it that", "to be", *long):
            hits = await task.recall(query, 3, deep=True, over="memory")
            found.append([hit.text for hit in hits])
        assert await task.recall("lamp", 0) == []
        return found

    result, store, run = await live(agent)
    be, lamp = ["to be or not to be"], ["the keeper of the lamp"]
    assert result[:5] == [[], [], [], [], be]
    assert result[5:] == [lamp] * 6
    assert max(len(event.query) for event in recalled(store, run)) < 2100


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda task: task.recall("caf\udce9"), "valid Unicode, found half a character at 3"),
        (lambda task: task.remember("caf\udce9"), "valid Unicode, found half a character at 3"),
        (lambda task: task.recall("x", -1), "expected k to be 0 or more, found -1"),
        (lambda task: task.recall("x", over="dreams"), "memory, sources or all, found 'dreams'"),
        (lambda task: task.recall("x", min_age_tokens=9, max_age_tokens=3), "ages from 9 tokens up"),
    ],
)
async def test_what_makes_no_sense_is_one_clear_line(act: Any, expected: str):
    """It is refused where it is asked, and the task can go on."""

    async def agent(task: Task, goal: str) -> str:
        with pytest.raises(UsageError) as refused:
            act(task)
        await task.remember("still here")
        return str(refused.value)

    result, _, _ = await live(agent)
    assert expected in result
    assert "\n" not in result


def test_a_query_says_only_what_was_asked():
    """Defaults are left out of its stored form, so that a filter to come changes no digest."""
    assert to_json(Query("lamp")) == b'{"text":"lamp"}'
