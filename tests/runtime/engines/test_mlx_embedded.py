"""The MLX engine over the embedded model: does it read, and does what is counted agree?"""

import pytest

from treering.runtime.engine import Message, Request

pytestmark = pytest.mark.model

PASSAGE = (
    "The lighthouse keeper at Point Harrow was called Tomas Varga. He kept a parrot named Admiral, and every "
    "evening he lit the lamp at six. His sister Ines ran the bakery on Mill Street."
)


def ask(question: str, max_tokens: int = 24) -> Request:
    return Request((Message("user", f"{PASSAGE}\n\n{question}"),), max_tokens)


async def test_it_answers_from_a_passage(embedded_engine):
    """Greedy, one short passage, one fact."""
    reply = await embedded_engine.generate(ask("Question: What was the parrot's name? Answer in one short sentence."))
    assert "Admiral" in reply.text
    assert reply.finish == "stop"


async def test_a_true_continuation_is_likelier(embedded_engine):
    """Scores tell the passage's name from others of the same kind."""
    asked = ask("Question: What was the parrot's name? Answer in one short sentence.")
    sentence = "The parrot's name was {}."
    true = await embedded_engine.score(asked, sentence.format("Admiral"))
    for other in ("Captain", "Polly", "Major"):
        false = await embedded_engine.score(asked, sentence.format(other))
        assert true.logprob > false.logprob
        assert false.cached_tokens == false.prompt_tokens - 1


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", "  two spaces\n\nand 1234 digits"),),
        (Message("system", "Be brief."), Message("user", "\nWho?")),
        (Message("user", "Ça va — 東京?"), Message("assistant", "Oui. \n"), Message("user", "<b>x</b>\t")),
    ],
)
def test_counts_are_exact(embedded_engine, messages):
    """Counts of messages and the overhead make the prompt's length, with and without a system message."""
    codec = embedded_engine._codec
    counted = sum(embedded_engine.count(message) for message in messages)
    assert counted + embedded_engine.info.overhead_tokens == len(codec.render(messages))
