"""The agents that come with the package, on a scripted model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from laws import CrashingWriter

from treering.events.catalogue import ModelCalled, RunConfig
from treering.events.codec import decode
from treering.events.errors import Divergence, StoreError
from treering.events.in_memory import InMemoryStore
from treering.runtime.agents.answering import (
    answers_nothing,
    choose,
    concluded,
    conclusion,
    plan,
    replied,
    sentence_of,
)
from treering.runtime.agents.candidates import asks_for_a_name, spans_in
from treering.runtime.agents.excerpts import Text, sentences
from treering.runtime.engine import Request, Score
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


TEXT = "\n\n".join(
    [
        "# Harbour\n\nTomas Varga kept a parrot named Admiral in the harbour office.",
        "# Mill\n\nThe old mill grinds barley on Mondays, and Ines Roth runs it.",
        "# Tower\n\nThe tower has ninety steps and a bell from 1931.",
    ]
)


def _answer(request: Request) -> str:
    prompt = request.messages[-1].text
    return "Tomas Varga kept a parrot." if "parrot named" in prompt else "That is not in the text."


class Scoring(ScriptedEngine):
    """Finds the question likely where the prompt's answer is `liked`."""

    def __init__(self, liked: str) -> None:
        super().__init__(_answer)
        self.liked = liked
        self.scored = 0

    async def score(self, request: Request, continuation: str) -> Score:
        self.scored += 1
        likely = request.messages[-1].text.endswith(f"Answer: {self.liked}")
        return Score(-1.0 if likely else -40.0, 4, 20)


class Mute:
    """An engine that writes and cannot score."""

    def __init__(self) -> None:
        self._engine = ScriptedEngine(_answer)
        self.asked = self._engine.requests
        self.info, self.count = self._engine.info, self._engine.count
        self.generate, self.aclose = self._engine.generate, self._engine.aclose


def _run(store: InMemoryStore, agent: str) -> str:
    return create_run(store, RunConfig(agent, weights="scripted", template="words", overhead_tokens=2))


@pytest.fixture
def town(tmp_path):
    path = tmp_path / "town.md"
    path.write_text(TEXT)
    return {"paths": [str(path)]}


async def test_reader_answers_with_what_a_model_finds_most_likely(town, anyio_backend):
    """The answer stands in the first citation, and the model's scores decide among those that stand there."""
    store = InMemoryStore()
    question = "Who kept something in the harbour?"
    for liked in ("Tomas Varga", "Admiral"):
        async with Runner(store, _run(store, "reader"), Scoring(liked)) as runner:
            outcome = await runner.ask(question, town)
        assert outcome.result["answer"] == liked
        citation = outcome.result["citations"][0]
        assert liked in citation["text"] == TEXT[citation["start"] : citation["end"]]
        assert len(outcome.result["citations"]) <= 3


async def test_reader_lets_a_model_answer_that_cannot_score(town, anyio_backend):
    """Without scores each child writes an answer, and one that its excerpt supports wins."""
    store = InMemoryStore()
    async with Runner(store, _run(store, "reader"), Mute()) as runner:
        outcome = await runner.ask("Who kept a parrot in the harbour?", town)
    assert outcome.result["answer"] == "Tomas Varga kept a parrot."


@pytest.mark.parametrize("known", [True, False])
async def test_a_score_that_an_engine_cannot_give_is_no_call(town, known, anyio_backend):
    """The log holds the calls that were made and no others; where the engine is known, it is not even asked."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("reader", weights="scripted", template="words", scoring=not known))
    engine = Mute()
    async with Runner(store, run, engine) as runner:
        outcome = await runner.ask("Who kept a parrot in the harbour?", town)
    called = [decode(record).event for record in store.read(run, kinds=["ModelCalled"])]
    assert len(called) == len(engine.asked)
    assert len(called) == len(list(store.read(run, kinds=["ModelReplied"])))
    unscored = [decode(record).event.what for record in store.read(run, kinds=["Sampled"])]
    assert ("score" in unscored) is not known
    async with Runner(store, run, replay=True) as runner:
        assert [one.result for one in await runner.replay()] == [outcome.result]


async def test_what_a_model_can_is_asked_of_the_log(anyio_backend):
    """After a resume on an engine that cannot score, the ops that were recorded before it are as they were."""

    async def agent(task, goal):
        could = [task.can_score]
        could.append(await task.score("A lantern", "lit"))
        could += [task.can_score, await task.score("A lantern", "lit"), task.can_score]
        return could

    store = InMemoryStore()
    run = create_run(store, RunConfig("agent", weights="scripted", template="words", overhead_tokens=2))
    writer = lambda s, r, e: CrashingWriter(s, r, e, 4)  # noqa: E731
    with pytest.raises(StoreError):
        async with Runner(store, run, Scoring("x"), agents={"agent": agent}, writer=writer) as runner:
            await runner.ask("go")
    config = RunConfig("agent", weights="scripted", template="words", overhead_tokens=2, scoring=False)
    async with Runner(store, run, Mute(), agents={"agent": agent}, config=config) as runner:
        outcome = await runner.resume()
    assert outcome.result == [True, -10.0, False, None, False]
    async with Runner(store, run, agents={"agent": agent}, replay=True) as runner:
        assert [one.result for one in await runner.replay()] == [outcome.result]
    writes = lambda text: "other" if text == "lit" else text  # noqa: E731

    async def changed(task, goal):
        await task.score("A lantern", "lit")
        await task.score("A lantern", writes("lit"))

    async with Runner(store, run, agents={"agent": changed}, replay=True) as runner:
        with pytest.raises(Divergence, match="op 2"):
            await runner.replay()


async def test_a_question_that_was_answered_is_recalled_and_not_read_again(town, anyio_backend):
    """Much the same question makes no model call; another one does, and both cite the source."""
    store = InMemoryStore()
    engine = Scoring("Tomas Varga")
    async with Runner(store, _run(store, "reader"), engine) as runner:
        first = await runner.ask("Who kept a parrot in the harbour office?", town)
        paid = engine.scored
        again = await runner.ask("Who kept the parrot in the harbour office?")
        assert engine.scored == paid
        assert again.result["answer"] == first.result["answer"]
        assert again.result["citations"] == first.result["citations"][:1]
        engine.liked = "Ines Roth"
        other = await runner.ask("Who runs the old mill?")
    assert engine.scored > paid
    assert other.result["answer"] == "Ines Roth"


async def test_a_child_reads_references_and_no_copies(town, anyio_backend):
    """The text of a source stands in the log once, however many calls read it."""
    store = InMemoryStore()
    run = _run(store, "reader")
    async with Runner(store, run, Scoring("Tomas Varga")) as runner:
        await runner.ask("Who kept a parrot in the harbour office?", town)
    called = [decode(record).event for record in store.read(run, kinds=["ModelCalled"])]
    assert called
    for event in called:
        assert isinstance(event, ModelCalled)
        inline = [part for entry in event.entries for part in entry.parts if isinstance(part, str)]
        assert "named Admiral in the harbour" not in " ".join(inline)


async def test_reader_says_when_the_input_does_not_answer(town, anyio_backend):
    """No passage speaks of it: no answer is made up."""
    store = InMemoryStore()
    async with Runner(store, _run(store, "reader"), ScriptedEngine(_answer)) as runner:
        outcome = await runner.ask("Which quantum chromodynamics lattice spacing was used?", town)
        other = await runner.ask("Which colour has the admiral's parrot in the mill tower of Lisbon?")
    assert outcome.result == {"answer": "The input does not answer this.", "found": False, "citations": []}
    assert not other.result["found"]
    assert len(other.result["citations"]) == 3  # the nearest passages


# -- the pure part -------------------------------------------------------------------------------------------


def test_sentences_hold_every_word_of_a_passage():
    """Nothing of a passage is lost by its division, and a term introduces its definition."""
    text = "walk(path)\n\n   Visit all files. Raise WalkError\n   at the end.\n\n>>> walk(1)\n2"
    found = sentences(text)
    assert "".join("".join(text[one.start : one.end].split()) for one in found) == "".join(text.split())
    assert text[found[1].lead_start : found[1].lead_end] == "walk(path)"


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('Press "stop" to end.', {"stop"}),
        ("The **lid** has 40 screws", {"lid", "40 screws", "40", "screws"}),
        ("press reset() twice", {"reset()", "press reset()"}),
        ("It is what it was.", set()),
    ],
)
def test_short_answers_are_names_numbers_and_phrases(text, answers):
    """What could answer is quoted, a number, a name or a short phrase; dull words are not."""
    found = {answer for _, _, answer in spans_in(text)}
    assert answers <= found
    assert not found & {"it", "is", "the", "what"}


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Which option ends it?", True),
        ("What is the name of the file?", True),
        ("How many steps has it?", True),
        ("In what order are they run?", True),
        ("What does the lid do?", False),
        ("How is the lid opened?", False),
        ("Why is it closed?", False),
        ("Explain the lid", False),
    ],
)
def test_a_question_asks_for_a_name_or_for_a_sentence(question, name):
    """Which, who, how many ask for a name; what does, how and why for a sentence."""
    assert asks_for_a_name(question) is name


def test_what_does_is_answered_by_a_sentence():
    """A description is a sentence of the text, not a word of it."""
    text = "The lid keeps rain out of the barrel. It is made of oak."
    plans = plan("What does the lid do?", [Text(text)])
    choice = choose(candidate for one in plans for candidate in one.candidates)
    assert choice.answer is not None
    assert choice.answer.answer == "The lid keeps rain out of the barrel."


def test_candidates_stand_where_they_say():
    """The place of a candidate in its text is its answer, also behind a lead."""
    text = (
        "walk(path)\n\n   Visit all files.\n\n   Other words that fill. "
        + "More of them. " * 30
        + "\n\n   Raises WalkError."
    )
    for one in plan("Which error does walk raise?", [Text(text, "Files")]):
        for candidate in one.candidates:
            assert " ".join(text[candidate.start : candidate.end].split()).strip("\"'*") == candidate.answer


def test_a_reply_that_is_not_in_its_excerpt_counts_less():
    """Support by the excerpt decides between written answers."""
    (one,) = plan("Who kept the parrot?", [Text("Varga kept the parrot.")])
    made_up, there = (replied("Who kept the parrot?", one.excerpt, said) for said in ("A dragon.", "Varga kept it."))
    assert made_up is not None
    assert there is not None
    assert choose([made_up, there]).answer == there
    assert replied("Who kept the parrot?", one.excerpt, "That is not in the text.") is None
    assert answers_nothing(" ")


def test_a_memory_answers_the_same_question_only():
    """One word that the memory does not know is another question."""
    sentence = sentence_of("The lid is oak. The barrel is ash.", "oak", "Which wood is the lid?")
    memory = conclusion("Which wood is the lid of?", "oak", sentence)
    assert sentence == "The lid is oak."
    assert concluded("Which wood is the lid?", memory) == "oak"
    assert concluded("Which wood is the door?", memory) is None
    assert concluded("Which wood is the lid?", "A remark on lids and wood") is None


@pytest.mark.parametrize("other", ["Where", "Why", "Who", "How"])
def test_a_memory_of_when_does_not_answer_why(other):
    """Recall ignores the word that asks; an answer depends on it."""
    memory = conclusion("When was the lighthouse built?", "1871", "It was built in 1871.")
    assert concluded("When was the lighthouse built?", memory) == "1871"
    assert concluded("When exactly was the lighthouse built?", memory) is None
    assert concluded(f"{other} was the lighthouse built?", memory) is None
    assert concluded("When was the lighthouse not built?", memory) is None


@pytest.mark.parametrize(
    ("reply", "nothing"),
    [
        ("", True),
        ("Not in the text.", True),
        ("The text does not say who.", True),
        ("There is no information about it.", True),
        ("If the encoding is not specified, UTF-8 is used.", False),
        ("None, when the argument is not given.", False),
        ("Nothing.", False),
    ],
)
def test_a_reply_that_only_says_that_nothing_is_said(reply, nothing):
    """A refusal is a whole reply; an answer may speak of what is not given."""
    assert answers_nothing(reply) is nothing
