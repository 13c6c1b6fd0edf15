"""How fast this machine runs the default model, for `treering doctor`.

Owns a few short measurements. Never downloads: without the model in the cache only the arithmetic is measured.
Takes under ten seconds on two cores; the figures are rough.
"""

import time
from pathlib import Path

import msgspec

from treering.runtime.engines.blas import Blas, import_mlx, preload_blas
from treering.runtime.engines.models import DEFAULT_MODEL, known_models, load_model

__all__ = ["Probe", "probe"]

_WIDTH = 1024
_PROMPT_TOKENS = 256
_REPLY_TOKENS = 8
_BATCH = 8


class Probe(msgspec.Struct, frozen=True):
    """What was found. Speeds of the model are None if it is not in the cache.

    `product_gflops` is a float32 product of two square matrices of 1,024. Decoding is measured alone and with
    a batch of eight, all of its sequences together.
    """

    mlx: str
    device: str
    blas: Blas
    product_gflops: float
    model: str
    model_path: Path
    prefill_tokens_s: float | None = None
    decode_tokens_s: float | None = None
    batch_decode_tokens_s: float | None = None


def probe() -> Probe:
    """Measure this machine. Blocking; raises TreeringError where MLX does not run at all."""
    mx = import_mlx()
    status = next(model for model in known_models() if model.name == DEFAULT_MODEL)
    found = Probe(
        mlx=str(mx.__version__),
        device=str(mx.default_device()),
        blas=preload_blas(),
        product_gflops=_product_gflops(),
        model=status.name,
        model_path=status.path,
    )
    if not status.present:
        return found
    prefill, decode, batch_decode = _model_speeds()
    return msgspec.structs.replace(
        found, prefill_tokens_s=prefill, decode_tokens_s=decode, batch_decode_tokens_s=batch_decode
    )


def _product_gflops() -> float:
    import mlx.core as mx

    square = mx.ones((_WIDTH, _WIDTH), dtype=mx.float32)
    mx.eval(square @ square)  # threads and code paths are set up by the first
    rounds = 0
    started = time.perf_counter()
    while time.perf_counter() - started < 0.2:
        mx.eval(square @ square)
        rounds += 1
    return rounds * 2 * _WIDTH**3 / (time.perf_counter() - started) / 1e9


def _model_speeds() -> tuple[float, float, float]:
    """Tokens per second of prefill, of one sequence decoding, and of eight together."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    model = load_model(DEFAULT_MODEL).model

    def timed(batch: int, tokens: int, cache: list[object]) -> float:
        started = time.perf_counter()
        mx.eval(model(mx.full((batch, tokens), 100, dtype=mx.int32), cache=cache)[:, -1])
        return time.perf_counter() - started

    timed(1, 1, make_prompt_cache(model))
    cache = make_prompt_cache(model)
    prefill = _PROMPT_TOKENS / timed(1, _PROMPT_TOKENS, cache)
    decode = _REPLY_TOKENS / sum(timed(1, 1, cache) for _ in range(_REPLY_TOKENS))
    wide = make_prompt_cache(model)
    timed(_BATCH, 8, wide)
    batch_decode = _BATCH * _REPLY_TOKENS / sum(timed(_BATCH, 1, wide) for _ in range(_REPLY_TOKENS))
    return prefill, decode, batch_decode
