"""A GGUF file becomes the model and the tokenizer that it was made from."""

import mlx.core as mx
import pytest
from mlx_lm.models.llama import Model

from treering.runtime.engine import EngineError
from treering.runtime.engines.gguf import load_gguf, unpermute_heads
from treering.runtime.engines.models import known_models


def test_rows_of_heads_come_back_in_order():
    """Interleaved halves (0, 2, 1, 3 of each head) are put side by side again."""
    rows = mx.array([[0], [2], [1], [3], [4], [6], [5], [7]])
    assert unpermute_heads(rows, heads=2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_bias_is_put_in_order_too():
    """One dimension is enough."""
    assert unpermute_heads(mx.array([0, 2, 1, 3]), heads=1).tolist() == [0, 1, 2, 3]


def test_the_loaded_model_computes_what_the_original_does(tiny_path, tiny_original):
    """Names, row order and hyper-parameters are right: the logits agree."""
    args, weights = tiny_original
    original = Model(args)
    original.load_weights(list(weights.items()))
    tokens = mx.array([[5, 77, 200, 31, 8]])
    loaded = load_gguf(tiny_path)
    assert loaded.context_tokens == 512
    assert mx.allclose(loaded.model(tokens), original(tokens), rtol=1e-4, atol=1e-4).item()


def test_half_precision_is_a_choice(tiny_path):
    """The weights come in float16 where that is fast."""
    assert load_gguf(tiny_path, half=True).model.model.norm.weight.dtype == mx.float16


@pytest.mark.parametrize(
    "text",
    ["Hello, world! 1234 it's fine.", "\n\n  leading\ttabs ", "naïve café — 東京 🙂", "def f(x):\n    return 1\n"],
)
def test_text_survives_the_tokenizer(tiny_path, text):
    """Any text comes back as it was."""
    tokenizer = load_gguf(tiny_path).tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.model
def test_the_embedded_tokenizer_knows_its_words():
    """Known tokens of SmolLM2: special ones whole, digits one by one, text round trips."""
    status = known_models()[0]
    if not status.present:
        pytest.skip("the embedded model is not in the cache")
    tokenizer = load_gguf(status.path).tokenizer
    assert tokenizer.encode("Hello, world! 1234 it's fine.") == [
        *(19556, 28, 905, 17, 216, 33, 34, 35, 36, 357, 506, 4979, 30),
    ]
    assert tokenizer.encode("<|im_start|>user<|im_end|>")[::2] == [1, 2]
    assert tokenizer.eos_token_ids == {0, 2}
    text = "The keeper — naïve, 東京 🙂 — wrote:\n\n\tdef f(x):  return x + 10_000\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": "qwen2"}, "architecture qwen2"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer of model llama"),
        ({"tokenizer.ggml.pre": "deepseek"}, "the rule deepseek"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling"),
        ({"tokenizer.chat_template": ""}, "no chat template"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, write_tiny, changes, said):
    """Another architecture, tokenizer or position scaling is an error, never a silent mistake."""
    path = write_tiny(tmp_path / "other.gguf", **changes)
    with pytest.raises(EngineError, match=said):
        load_gguf(path)


def test_a_file_that_is_no_gguf_is_one_clear_line(tmp_path):
    """The error names the file."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"broken\.gguf cannot be read"):
        load_gguf(path)
