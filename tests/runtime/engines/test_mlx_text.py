"""Replies cut at stop strings, and prompts counted by their messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.runtime.engine import EngineError, Message
from treering.runtime.engines.gguf import load_gguf
from treering.runtime.engines.mlx_text import PromptCodec, StopText

SHORT = st.text(alphabet="ab\n", max_size=12)


def cut(text: str, stops: list[str]) -> str:
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    return text[: min(found)] if found else text


@given(pieces=st.lists(SHORT, max_size=6), stops=st.lists(st.text(alphabet="ab\n", max_size=4), max_size=3))
def test_a_reply_ends_before_its_first_stop_string(pieces, stops):
    """However the text is cut into pieces, what is let through is what precedes the first stop string met."""
    stream = StopText(stops)
    shown = ""
    seen = ""
    for piece in pieces:
        seen += piece
        shown += stream.feed(piece)
        # A stop string that is whole by now has ended it, at the place where the text so far has its first.
        assert stream.stopped == (cut(seen, stops) != seen or any(seen.endswith(s) for s in stops if s))
        if stream.stopped:
            break
    shown += stream.close()
    assert shown == stream.text == cut(seen, stops)


def test_what_may_begin_a_stop_string_is_held_back():
    """Nothing of a stop string is ever shown, and a false beginning is shown once it is decided."""
    stream = StopText(["\nQ:"])
    assert stream.feed("yes\n") == "yes"
    assert stream.feed("Q") == ""
    assert stream.feed("uite") == "\nQuite"
    assert stream.feed(".\nQ: next") == "."
    assert stream.stopped
    assert stream.feed("more") == ""


TURNS = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=40)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def codec(tiny_path):
    return PromptCodec(load_gguf(tiny_path).tokenizer)


@given(messages=TURNS, system=st.booleans())
def test_counts_add_up_to_the_prompt(codec, messages, system):
    """With or without a system message, counts and overhead make the rendered prompt's length exactly."""
    if system:
        messages = [Message("system", "Be brief."), *messages]
    assert sum(map(codec.count, messages)) + codec.overhead_tokens == len(codec.render(messages))


def test_a_default_system_prompt_is_part_of_the_overhead(tmp_path, write_tiny):
    """Counts bound the prompt from above where the template adds what nobody wrote."""
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are X.<|im_end|>\n{% endif %}"
    path = write_tiny(tmp_path / "default.gguf", default + "CHATML")
    codec = PromptCodec(load_gguf(path).tokenizer)
    user, system = Message("user", "Who?"), Message("system", "Be brief.")
    assert codec.count(user) + codec.overhead_tokens == len(codec.render([user]))
    assert codec.count(system) + codec.count(user) + codec.overhead_tokens > len(codec.render([system, user]))


def test_a_template_that_refuses_a_role_says_so(tmp_path, write_tiny):
    """Counting still bounds the message; rendering is an EngineError that names the roles."""
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    path = write_tiny(tmp_path / "strict.gguf", strict + "CHATML")
    codec = PromptCodec(load_gguf(path).tokenizer)
    conversation = [Message("user", "Hi."), Message("assistant", "Hello there.")]
    assert sum(map(codec.count, conversation)) + codec.overhead_tokens >= len(codec.render(conversation))
    with pytest.raises(EngineError, match=r"\(assistant\): user first"):
        codec.render([Message("assistant", "Hello")])


def test_templates_have_digests(tmp_path, codec, write_tiny):
    """Another template is another digest."""
    path = write_tiny(tmp_path / "other.gguf", "CHATML\n\n")
    assert PromptCodec(load_gguf(path).tokenizer).digest != codec.digest
