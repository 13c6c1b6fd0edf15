"""GGUF files of the llama architecture, loaded as mlx-lm's own llama model.

Owns the translation of names, of row order and of the tokenizer. Never runs the model, never downloads.
The invariant: the model and tokenizer behave as those of the checkpoint that the file was made from.

The format: the GGUF specification in ggml's documentation; the order of q and k rows: llama.cpp's converter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from treering.runtime.engine import EngineError

__all__ = ["GgufModel", "load_gguf", "unpermute_heads"]

_GROUP = 32  # weights to a scale, in every GGUF quantisation that MLX reads
_CONTROL = 3  # ggml's token type of special tokens

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# How each family cuts text before byte-pair merges: digits one by one first, then a pattern.
# `None` is GPT-2's own pattern, which the byte-level step brings with it.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: dict[str, tuple[bool, str | None]] = {
    "smollm": (True, None),
    "gpt-2": (False, None),
    "default": (False, None),
    "llama-bpe": (False, _LLAMA3_PATTERN),
    "llama3": (False, _LLAMA3_PATTERN),
}


class GgufModel(msgspec.Struct, frozen=True):
    """A loaded file: mlx-lm's model and tokenizer, and the longest context it was trained for."""

    model: Any
    tokenizer: Any
    context_tokens: int


def load_gguf(path: Path, half: bool = False, chat_template: str | None = None) -> GgufModel:
    """Load a llama GGUF with its weights dequantised, to float32 or, with `half`, to float16.

    `chat_template` takes the place of the file's own. Raises EngineError for another architecture,
    tokenizer or quantisation, naming it.
    """
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    tensors: Any
    metadata: Any
    try:
        tensors, metadata = mx.load(str(path), return_metadata=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"{path} cannot be read as GGUF: {str(error).splitlines()[0]}") from error
    _check_supported(path, tensors, metadata)
    args = ModelArgs(**_hyper_parameters(metadata, tied="output.weight" not in tensors))
    model = Model(args)
    dtype = mx.float16 if half else mx.float32
    weights = _named_weights(tensors, args.num_attention_heads, args.num_key_value_heads, dtype)
    try:
        model.load_weights(weights, strict=True)
    except ValueError as error:
        raise EngineError(f"{path} does not hold a complete llama: {str(error).splitlines()[0]}") from error
    mx.eval(model.parameters())
    model.eval()
    tokenizer = _tokenizer(path, metadata, chat_template)
    return GgufModel(model, tokenizer, int(metadata["llama.context_length"]))


def unpermute_heads(rows: Any, heads: int) -> Any:
    """Put the rows of a q or k projection back in the checkpoint's order.

    GGUF interleaves the two halves of each head, `(heads, width/2, 2)`, as its rotation pairs neighbours;
    the checkpoint's order is `(heads, 2, width/2)`.
    """
    shape = rows.shape
    pairs = rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return pairs.swapaxes(1, 2).reshape(shape)


def _check_supported(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    architecture = metadata.get("general.architecture", "none")
    if architecture != "llama":
        raise EngineError(f"{path} is a GGUF of architecture {architecture}; only llama is read")
    if "rope_freqs.weight" in tensors or metadata.get("llama.rope.scaling.type", "none") != "none":
        raise EngineError(f"{path} scales its positions (RoPE scaling), which is not read from GGUF")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        found = metadata.get("tokenizer.ggml.model", "none")
        raise EngineError(f"{path} has a tokenizer of model {found}; only byte-level BPE (gpt2) is read")
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if cut not in _CUTS:
        raise EngineError(f"{path} cuts text by the rule {cut}; known rules are {', '.join(sorted(_CUTS))}")


def _hyper_parameters(metadata: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    def whole(key: str) -> int:
        return int(metadata[f"llama.{key}"])

    heads = whole("attention.head_count")
    kv_heads = metadata.get("llama.attention.head_count_kv")
    return {
        "model_type": "llama",
        "hidden_size": whole("embedding_length"),
        "num_hidden_layers": whole("block_count"),
        "intermediate_size": whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if kv_heads is None else int(kv_heads),
        "rms_norm_eps": float(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": whole("context_length"),
        "rope_theta": float(metadata.get("llama.rope.freq_base", 10000.0)),
        "rope_traditional": False,
        "tie_word_embeddings": tied,
    }


def _named_weights(tensors: Mapping[str, Any], heads: int, kv_heads: int, dtype: Any) -> list[tuple[str, Any]]:
    """Pairs of mlx-lm's name and the dense weight, for every tensor of the file."""
    named = []
    for name in tensors:
        stem, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            continue  # scales and biases of a quantised weight are read with it
        dense = _dense(tensors, name, dtype)
        if stem.endswith(".attn_q"):
            dense = unpermute_heads(dense, heads)
        elif stem.endswith(".attn_k"):
            dense = unpermute_heads(dense, kv_heads)
        named.append((f"{_mlx_name(stem)}.{kind}", dense))
    return named


def _mlx_name(stem: str) -> str:
    if stem in _OUTER_NAMES:
        return _OUTER_NAMES[stem]
    parts = stem.split(".", 2)
    if len(parts) != 3 or parts[0] != "blk" or parts[2] not in _LAYER_NAMES:
        raise EngineError(f"the GGUF holds a tensor that a llama does not have: {stem}")
    return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}"


def _dense(tensors: Mapping[str, Any], name: str, dtype: Any) -> Any:
    import mlx.core as mx

    weight = tensors[name]
    stem = name.removesuffix(".weight")
    scales = tensors.get(f"{stem}.scales")
    if scales is None:
        return weight.astype(dtype)
    bits = weight.shape[-1] * 32 // (scales.shape[-1] * _GROUP)
    # In float32: a float16 scale times 15 loses the last bits that a float32 model could keep.
    wide = mx.dequantize(
        weight, scales.astype(mx.float32), tensors[f"{stem}.biases"].astype(mx.float32), _GROUP, bits
    )
    return wide.astype(dtype)


def _tokenizer(path: Path, metadata: Mapping[str, Any], chat_template: str | None) -> Any:
    """The file's byte-level BPE tokenizer, in the wrapper that mlx-lm expects."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    ids = {token: index for index, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=False, byte_fallback=False))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(_cutter(metadata, pre_tokenizers))
    bpe.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    special = [tokens[i] for i, kind in enumerate(kinds) if kind == _CONTROL]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])

    template = chat_template or metadata.get("tokenizer.chat_template")
    if not template:
        raise EngineError(f"{path} has no chat template, so it cannot be asked anything")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        clean_up_tokenization_spaces=False,
        model_max_length=int(metadata["llama.context_length"]),
        additional_special_tokens=special,
        **_named_tokens(metadata, tokens),
    )
    wrapped.chat_template = template
    # A small model that was left without a turn to end may still end the text.
    ends = (_token_id(metadata, "eos"), _token_id(metadata, "eot"), ids.get("<|endoftext|>"))
    known = sorted({token for token in ends if token is not None})
    return TokenizerWrapper(wrapped, BPEStreamingDetokenizer, eos_token_ids=known)


def _cutter(metadata: Mapping[str, Any], pre_tokenizers: Any) -> list[Any]:
    single_digits, pattern = _CUTS[metadata.get("tokenizer.ggml.pre", "default")]
    steps = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    if pattern is None:
        return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    from tokenizers import Regex

    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return [*steps, cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _token_id(metadata: Mapping[str, Any], role: str) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return None if index is None else int(index)


def _named_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    roles = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {name: _token_id(metadata, role) for role, name in roles.items()}
    return {name: tokens[index] for name, index in found.items() if index is not None}
