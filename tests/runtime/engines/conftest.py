"""Models for the engine tests: a tiny one made on the spot, and the embedded one if it is in the cache."""

from pathlib import Path

import pytest

from treering.runtime.engines.blas import import_mlx
from treering.runtime.engines.mlx import MlxEngine
from treering.runtime.engines.models import known_models, load_engine

mx = import_mlx()

TINY_WIDTH, TINY_HEADS, TINY_KV_HEADS, TINY_LAYERS, TINY_CONTEXT = 32, 4, 2, 2, 512
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte, in the order of the bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def tiny_checkpoint():
    """Arguments and seeded random weights, by mlx-lm's names, of a llama that knows nothing."""
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    args = ModelArgs(
        model_type="llama",
        hidden_size=TINY_WIDTH,
        num_hidden_layers=TINY_LAYERS,
        intermediate_size=64,
        num_attention_heads=TINY_HEADS,
        num_key_value_heads=TINY_KV_HEADS,
        rms_norm_eps=1e-5,
        vocab_size=len(tiny_tokens()),
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    shapes = tree_flatten(Model(args).parameters())
    keys = mx.random.split(mx.random.key(3), len(shapes))
    weights = {
        # Wide enough that the likeliest token is clear of rounding.
        name: mx.ones(old.shape) if "norm" in name else mx.random.normal(old.shape, key=key) * 0.4
        for (name, old), key in zip(shapes, keys, strict=True)
    }
    return args, weights


def tiny_tokens() -> list[str]:
    return ["<|im_start|>", "<|im_end|>", *byte_letters(), "he", "Ġt"]


def tiny_metadata(**changes):
    kinds = [3, 3] + [1] * (len(tiny_tokens()) - 2)

    def whole(number):
        return mx.array(number, dtype=mx.uint32)

    metadata = {
        "general.architecture": "llama",
        "llama.embedding_length": whole(TINY_WIDTH),
        "llama.block_count": whole(TINY_LAYERS),
        "llama.feed_forward_length": whole(64),
        "llama.attention.head_count": whole(TINY_HEADS),
        "llama.attention.head_count_kv": whole(TINY_KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5, dtype=mx.float32),
        "llama.rope.freq_base": mx.array(10000.0, dtype=mx.float32),
        "llama.context_length": whole(TINY_CONTEXT),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tiny_tokens(),
        "tokenizer.ggml.merges": ["h e", "Ġ t"],
        "tokenizer.ggml.token_type": mx.array(kinds, dtype=mx.int32),
        "tokenizer.ggml.eos_token_id": whole(1),
    }
    return metadata | changes


def write_tiny_gguf(path: Path, template: str = "CHATML", **changes) -> Path:
    """The tiny checkpoint as llama.cpp's converter would write it: renamed, q and k rows interleaved.

    `template` may have CHATML in it, which stands for the usual one; `changes` are metadata.
    """
    changes = {"tokenizer.chat_template": template.replace("CHATML", CHATML)} | changes
    from treering.runtime.engines.gguf import _LAYER_NAMES, _OUTER_NAMES

    args, weights = tiny_checkpoint()
    ours = {new: old for old, new in (_LAYER_NAMES | _OUTER_NAMES).items()}
    tensors = {}
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            stem = f"blk.{layer}.{ours[rest]}"
        else:
            stem = ours[stem]
        heads = {"attn_q": args.num_attention_heads, "attn_k": args.num_key_value_heads}.get(stem.rpartition(".")[2])
        if heads is not None:
            # convert_hf_to_gguf's `permute`
            rows = weight.shape[0]
            weight = weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        tensors[f"{stem}.weight"] = mx.contiguous(weight)
    mx.save_gguf(str(path), tensors, tiny_metadata(**changes))
    return path


@pytest.fixture(scope="session")
def write_tiny():
    return write_tiny_gguf


@pytest.fixture(scope="session")
def tiny_original():
    return tiny_checkpoint()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_engine(tiny_path):
    """Serves any loop: the tests of both backends share it. It is closed by the interpreter's end."""
    return load_engine(str(tiny_path))


@pytest.fixture
def make_engine(tiny_path):
    """Engines over the tiny model with limits of their own, closed when the test ends."""
    made: list[MlxEngine] = []

    def make(**limits) -> MlxEngine:
        made.append(load_engine(str(tiny_path), **limits))
        return made[-1]

    yield make
    for engine in made:
        engine._worker.close()
        assert engine._worker.join(20)


@pytest.fixture(scope="session")
def embedded_engine():
    status = known_models()[0]
    if not status.present:
        pytest.skip(f"the embedded model is not in {status.path.parent}: `treering models pull` fetches it")
    return load_engine(fetch=False)
