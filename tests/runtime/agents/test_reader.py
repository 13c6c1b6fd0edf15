"""The agents that come with the package, on a scripted model."""

import pytest

from treering.events.catalogue import RunConfig
from treering.events.in_memory import InMemoryStore
from treering.runtime.agents.answering import Candidate, answers_nothing, rank
from treering.runtime.engine import Request
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


TEXT = "\n\n".join(
    [
        "# Harbour\n\nTomas Varga kept a parrot named Admiral in the harbour office.",
        "# Mill\n\nThe old mill grinds barley on Mondays, and Ines runs it.",
        "# Tower\n\nThe tower has ninety steps and a bell from 1931.",
    ]
)


def _answer(request: Request) -> str:
    prompt = request.messages[-1].text
    return "Tomas Varga kept a parrot." if "parrot named" in prompt else "The text does not say."


def _run(store: InMemoryStore, agent: str) -> str:
    return create_run(store, RunConfig(agent, weights="scripted", template="words", overhead_tokens=2))


async def test_reader_answers_cites_and_remembers(tmp_path, anyio_backend):
    """One child a passage, an answer with the passage it stands in, and a memory of it for the next question."""
    path = tmp_path / "town.md"
    path.write_text(TEXT)
    store = InMemoryStore()
    async with Runner(store, _run(store, "reader"), ScriptedEngine(_answer)) as runner:
        first = await runner.ask("Who kept a parrot in the harbour?", {"paths": [str(path)]})
        again = await runner.ask("Who kept a parrot in the harbour office?")
    assert first.status == again.status == "finished", first.error
    assert first.result["found"]
    citation = first.result["citations"][0]
    assert "parrot" in TEXT[citation["start"] : citation["end"]]
    assert len(first.result["citations"]) <= 3
    assert [memory.text for memory in runner.state.memory.memories.values()]


async def test_reader_says_when_the_input_does_not_answer(tmp_path, anyio_backend):
    """No passage speaks of it: no answer is made up."""
    path = tmp_path / "town.md"
    path.write_text(TEXT)
    store = InMemoryStore()
    async with Runner(store, _run(store, "reader"), ScriptedEngine(_answer)) as runner:
        outcome = await runner.ask("Which quantum chromodynamics lattice spacing was used?", {"paths": [str(path)]})
    assert outcome.result == {"answer": "The input does not answer this.", "found": False, "citations": []}


async def test_digest_reads_everything_and_leaves_memories(tmp_path, anyio_backend):
    """Every part is summarised and remembered; a node's summary rests on those below it."""
    path = tmp_path / "long.md"
    path.write_text("\n\n".join(f"# Part {n}\n\n" + f"Ship {n} carried {n * 7} crates. " * 30 for n in range(12)))
    store = InMemoryStore()
    engine = ScriptedEngine(lambda request: f"Short {len(request.messages[-1].text)}.")
    async with Runner(store, _run(store, "digest"), engine) as runner:
        outcome = await runner.ask("Shorten this", {"paths": [str(path)]})
    assert outcome.status == "finished", outcome.error
    assert len(runner.state.tasks) > 4
    assert len(runner.state.memory.memories) > 3


def test_an_answer_that_is_not_in_its_passage_ranks_lower():
    """Support by the passage decides between answers of equal recall."""
    made_up = Candidate("A dragon kept it.", "Varga kept the parrot", 0, 5.0)
    there = Candidate("Varga kept it.", "Varga kept the parrot", 1, 5.0)
    assert rank([made_up, there], "Who kept the parrot?")[0] is there
    assert answers_nothing("The text does not say.")
    assert not answers_nothing("Ninety.")
