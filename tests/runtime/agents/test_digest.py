"""`digest`, on a scripted model."""

import pytest

from treering.events.catalogue import (
    InputAdded,
    Limits,
    MemoryRef,
    ModelCalled,
    Remembered,
    RunConfig,
    SourceSpan,
    TaskSpawned,
)
from treering.events.codec import decode
from treering.events.in_memory import InMemoryStore
from treering.replays.showing import prompt_of
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine
from treering.tools.inputs import PYTHON_REFERENCE


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def _events(store, run, kind):
    return [decode(record) for record in store.read(run, kinds=[kind.__name__])]


def _run(**changes):
    store = InMemoryStore()
    return store, create_run(store, RunConfig("digest", model="scripted", **changes))


async def _ask(store, run, goal, paths=()):
    engine = ScriptedEngine()
    async with Runner(store, run, engine) as runner:
        return await runner.ask(goal, {"paths": list(paths)} if paths else None), engine


async def _whole_reference(**changes):
    store, run = _run(**changes)
    outcome, engine = await _ask(store, run, "Shorten it", [PYTHON_REFERENCE])
    return store, run, outcome, engine


async def test_a_text_of_fifty_windows_is_digested_under_the_default_limits():
    """In one question: each part fits a window, all of the text is read, and no call is one too many."""
    store, run, outcome, engine = await _whole_reference()
    assert outcome.status == "finished", outcome.error
    spawned = [one.event.path for one in _events(store, run, TaskSpawned)]
    assert len(engine.requests) == len(spawned) < 150
    assert max(path.count(".") for path in spawned) <= 2
    calls = [one.event for one in _events(store, run, ModelCalled)]
    assert not any(entry.spill for call in calls for entry in call.entries)
    read = sorted(
        (part.start, part.end)
        for call in calls
        for entry in call.entries
        for part in entry.parts
        if isinstance(part, SourceSpan)
    )
    text = next(iter(store.read(run, kinds=["InputAdded"])))
    whole = store.blob(decode(text).event.source)
    at = 0
    for start, end in read:
        assert not whole[at:start].strip()
        at = end
    assert not whole[at:].strip()


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"limits": Limits(depth=1)}, "--max-depth 3"),
        ({"limits": Limits(children=1)}, "--max-children 2"),
        ({"limits": Limits(tasks=20)}, "--max-tasks"),
        ({"window_tokens": 150}, "--window"),
    ],
)
async def test_what_the_limits_do_not_allow_is_said_before_anything_is_paid(changes, option):
    """One line, which names the option; the number that it names does."""
    store, run, outcome, engine = await _whole_reference(**changes)
    assert outcome.status == "failed"
    assert option in outcome.error
    assert "\n" not in outcome.error
    assert engine.requests == []
    assert len(_events(store, run, TaskSpawned)) == 1


async def test_the_number_that_is_named_is_enough():
    """Whoever does what the line says gets an answer."""
    _, _, outcome, _ = await _whole_reference(limits=Limits(tasks=20))
    tasks = int(outcome.error.partition("give --max-tasks ")[2].split(",")[0])
    assert (await _whole_reference(limits=Limits(tasks=tasks)))[2].status == "finished"
    assert (await _whole_reference(limits=Limits(tasks=tasks - 1)))[2].status == "failed"


FALCON = "# Keeper\n\nOnly Ines Roth keeps a tame falcon.\n"


@pytest.fixture
def novel(tmp_path):
    """Two files, each larger than a window of 400 tokens."""
    for name in ("harbour", "mill"):
        chapters = [
            f"# The {name}, {at}\n\n" + " ".join(f"{name.title()} {at} has fact {at * 40 + n}." for n in range(40))
            for at in range(6)
        ]
        (tmp_path / f"{name}.md").write_text("\n\n".join([*chapters, FALCON] if name == "mill" else chapters))
    return [str(tmp_path / "harbour.md"), str(tmp_path / "mill.md")]


async def test_the_goal_is_in_every_prompt(novel):
    """Leaves and nodes are asked in its light."""
    store, run = _run(window_tokens=600)
    await _ask(store, run, "List the keepers", novel)
    calls = _events(store, run, ModelCalled)
    assert len(calls) > 3
    for call in calls:
        assert "Task: List the keepers" in prompt_of(store, run, call.seq).messages[-1].text


async def test_memories_form_a_tree_over_all_passages(novel):
    """The root's is made from those of its children, and so on down to passages, of which none is missing."""
    store, run = _run(window_tokens=600)
    await _ask(store, run, "Shorten it", novel)
    memories = {one.event.id: one.event for one in _events(store, run, Remembered)}
    top = _events(store, run, Remembered)[-1].event
    assert top.text.startswith("Digest: Shorten it\n")
    parts = [ref for ref in top.refs if isinstance(ref, MemoryRef)]
    assert parts
    assert {ref.source for ref in top.refs if ref not in parts} == {
        one.event.source for one in _events(store, run, InputAdded)
    }
    spans, waiting = set(), parts
    while waiting:
        ref = waiting.pop()
        if isinstance(ref, SourceSpan):
            spans.add(ref)
        else:
            waiting += memories[ref.id].refs
    async with Runner(store, run, ScriptedEngine()) as runner:
        for source in runner.state.sources:
            assert set(runner.recaller.index(runner.state).passages(source)) <= spans
    nodes = [call.event for call in _events(store, run, ModelCalled) if call.header.task == "1"]
    assert all(isinstance(ref, MemoryRef) for ref in nodes[0].entries[-1].parts[1:-1:2])


async def test_the_same_goal_is_remembered_and_another_is_read_for(novel):
    """No call for the first; a call for each part for the second, and for new sources."""
    store, run = _run(window_tokens=600)
    first, engine = await _ask(store, run, "Shorten it", novel[:1])
    parts = len(engine.requests)
    again, engine = await _ask(store, run, "Shorten  it")
    assert engine.requests == []
    assert again.result == first.result
    _, engine = await _ask(store, run, "Shorten it to names")
    assert len(engine.requests) == parts
    _, engine = await _ask(store, run, "Shorten it", novel[1:])
    assert len(engine.requests) > parts


async def test_what_is_cited_is_nearest_to_goal_and_summary(novel):
    """Not what stands first in the text."""
    store, run = _run(window_tokens=600)
    outcome, _ = await _ask(store, run, "Who keeps a falcon?", novel)
    assert 1 <= len(outcome.result["citations"]) <= 3
    assert "Ines Roth" in outcome.result["citations"][0]["text"]
    assert outcome.result["citations"][0]["source"].endswith("mill.md")
