"""The MLX engine beside mlx-lm's own batch generation, on the same prompts, in the same run.

Prints a small table: eight replies at once by either way and their ratio, decoding alone, and prefill.
Run it as `python -m benchmarks.bench_engine`; a few rounds take about a minute on two cores. The rounds
alternate between the two ways, so that a busy neighbour slows both.
"""

import argparse
import statistics
import time
from typing import Any

import anyio

from treering.runtime.engine import Message, Request
from treering.runtime.engines.blas import import_mlx, preload_blas
from treering.runtime.engines.mlx import MlxEngine
from treering.runtime.engines.models import DEFAULT_MODEL, load_model, pull

_SUBJECTS = (
    "a lighthouse and its keeper",
    "the harbour of a small town in winter",
    "a parrot that learned the names of ships",
    "how bread is baked before dawn",
    "the repair of an old clock",
    "a river that changed its course",
    "two sisters and a map of the islands",
    "the first railway across the mountains",
)
_FILLER = "The boat left the harbour at six, and nobody on the pier could tell where it went. "


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each way (median taken)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each reply")
    options = parser.parse_args()
    mx = import_mlx()
    pull(DEFAULT_MODEL)
    loaded = load_model(DEFAULT_MODEL)
    # No prefix cache: a second round must not find the first one's prompts.
    engine = MlxEngine(lambda: loaded, prefix_bytes=0)
    blas = preload_blas()
    print(f"{loaded.name} on {mx.default_device()}, BLAS {blas.library}")
    anyio.run(_measure, engine, loaded, options.rounds, options.tokens)


async def _measure(engine: MlxEngine, loaded: Any, rounds: int, tokens: int) -> None:
    requests = [_request(f"Write a long story about {subject}.", tokens) for subject in _SUBJECTS]
    await _ours(engine, requests[:1])
    await _compare(engine, loaded, requests, rounds, "short prompts")
    # As siblings of one task come: each its own passage, and one question.
    passages = [f"{subject}: {_FILLER * 9}" for subject in _SUBJECTS]
    longer = [_request(f"{passage}\n\nContinue this as a long story.", tokens) for passage in passages]
    await _compare(engine, loaded, longer, rounds, "passages")
    lone = [await _ours(engine, requests[:1]) for _ in range(rounds)]
    prompt = _request(_FILLER * 28, 1)
    prefill = [await _prefill(engine, prompt) for _ in range(rounds)]
    await engine.aclose()
    print(f"{'1 reply, MlxEngine':<44}{statistics.median(lone):>8.1f} tokens/s")
    print(f"{'prefill, MlxEngine':<44}{statistics.median(prefill):>8.1f} tokens/s")


async def _compare(engine: MlxEngine, loaded: Any, requests: list[Request], rounds: int, what: str) -> None:
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(_mlx_lm(loaded, requests))  # blocks the loop, on which nothing else runs
        ours.append(await _ours(engine, requests))
    reference, own = statistics.median(theirs), statistics.median(ours)
    print(f"{f'8 replies, {what}, mlx_lm.batch_generate':<44}{reference:>8.1f} tokens/s")
    print(f"{f'8 replies, {what}, MlxEngine':<44}{own:>8.1f} tokens/s")
    print(f"{'ratio (at least 0.9 is wanted)':<44}{own / reference:>8.2f}")


def _request(text: str, tokens: int) -> Request:
    return Request((Message("user", text),), max_tokens=tokens)


async def _ours(engine: MlxEngine, requests: list[Request]) -> float:
    """Generated tokens per second of wall time, reading the prompts included."""
    counts: list[int] = []

    async def one(request: Request) -> None:
        reply = await engine.generate(request)
        # As batch_generate's lists do, leave the end-of-turn token out.
        counts.append(reply.generated_tokens - (reply.finish == "stop"))

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for request in requests:
            group.start_soon(one, request)
    return sum(counts) / (time.perf_counter() - started)


def _mlx_lm(loaded: Any, requests: list[Request]) -> float:
    from mlx_lm import batch_generate

    started = time.perf_counter()
    prompts = [
        loaded.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.text} for message in request.messages],
            add_generation_prompt=True,
        )
        for request in requests
    ]
    response = batch_generate(
        loaded.model,
        loaded.tokenizer,
        prompts,
        max_tokens=requests[0].max_tokens,
        prefill_step_size=256,
        return_token_ids=True,
    )
    return sum(len(ids) for ids in response.token_ids) / (time.perf_counter() - started)


async def _prefill(engine: MlxEngine, request: Request) -> float:
    started = time.perf_counter()
    reply = await engine.generate(request)
    return reply.prompt_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
