"""The MLX engine over a tiny model that knows nothing: batching, streaming, cancelling, failing."""

import subprocess
import sys

import anyio
import anyio.lowlevel
import msgspec
import pytest

from treering.events.errors import UsageError
from treering.runtime.engine import ContextOverflow, EngineError, Message, Reply, Request, ScoringEngine
from treering.runtime.engines.mlx import MlxEngine
from treering.runtime.engines.models import load_engine, load_model

LONG = "The harbour lay grey under the rain, and the boats knocked against the pier all night. " * 2


def request(text: str = "Who?", max_tokens: int = 12, **fields) -> Request:
    return Request((Message("user", text),), max_tokens, **fields)


async def together(engine, requests: list[Request]) -> list[Reply]:
    """All of them at once; replies in the order of the requests."""
    replies: dict[int, Reply] = {}

    async def one(index: int) -> None:
        replies[index] = await engine.generate(requests[index])

    async with anyio.create_task_group() as group:
        for index in range(len(requests)):
            group.start_soon(one, index)
    return [replies[index] for index in range(len(requests))]


async def until(condition, timeout_s: float = 20.0) -> None:
    """Wait for the engine's thread to get somewhere."""
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 (the thread has no event to wait for)
            await anyio.sleep(0.002)


async def test_it_is_an_engine_that_scores(tiny_engine):
    """The protocol is kept, and the engine says who it is."""
    assert isinstance(tiny_engine, ScoringEngine)
    assert tiny_engine.info.engine == "mlx"
    assert tiny_engine.info.context_tokens == 512
    assert len(tiny_engine.info.weights) == 64


async def test_counts_of_a_prompt_are_the_engines_own(tiny_engine):
    """What a window adds up is what the engine reads; a reply's tokens stay within max_tokens."""
    asked = Request((Message("system", "Be brief."), Message("user", "Who?"), Message("tool", "x")), 5)
    reply = await tiny_engine.generate(asked)
    counted = sum(tiny_engine.count(message) for message in asked.messages)
    assert reply.prompt_tokens == counted + tiny_engine.info.overhead_tokens
    assert 1 <= reply.generated_tokens <= 5
    assert reply.finish == ("length" if reply.generated_tokens == 5 else "stop")
    assert reply.logprob is not None
    assert reply.logprob < 0


async def test_a_batch_does_not_change_a_seed(make_engine):
    """Alone or among others that draw, join late and leave early, a seed gives the same text."""
    engine = make_engine(prefix_bytes=0)
    asked = [
        request(f"{n} {LONG[: 20 * n]}", 10 + 3 * n, temperature=0.9, top_p=0.95 if n % 2 else 1.0, seed=n)
        for n in range(5)
    ]
    alone = [await engine.generate(each) for each in asked]
    assert [reply.text for reply in await together(engine, asked)] == [reply.text for reply in alone]
    other = await engine.generate(request(f"3 {LONG[:60]}", 19, temperature=0.9, seed=77))
    assert other.text != alone[3].text


async def test_a_long_beginning_is_read_once(make_engine):
    """Of siblings that share one, all but the first find it, and the answer is the one of an empty cache."""
    asked = [request(f"{LONG} Question {n}?") for n in ("one", "two", "three")]
    bare = await together(make_engine(prefix_bytes=0), asked)
    engine = make_engine()
    replies = await together(engine, asked)
    shared = engine.count(Message("user", LONG)) - 10
    assert sorted(reply.cached_tokens > shared for reply in replies) == [False, True, True]
    assert all(reply.cached_tokens < reply.prompt_tokens for reply in replies)
    assert {reply.cached_tokens for reply in bare} == {0}
    assert [reply.text for reply in replies] == [reply.text for reply in bare]


async def test_a_conversation_goes_on_from_its_cache(make_engine):
    """The reply's own keys and values are kept with its prompt's."""
    engine = make_engine()
    first = await engine.generate(request(LONG, 8))
    turns = (Message("user", LONG), Message("assistant", first.text), Message("user", "And then?"))
    second = await engine.generate(Request(turns, 4))
    assert second.cached_tokens >= first.prompt_tokens - 1


async def test_text_is_shown_as_it_comes(tiny_engine):
    """The pieces, whole characters each, make the reply; they come on the loop, before its end."""
    pieces: list[str] = []
    reply = await tiny_engine.generate(request(max_tokens=40, temperature=1.0, seed=5), pieces.append)
    assert "".join(pieces) == reply.text
    assert len(pieces) > 3


async def test_a_stop_string_ends_the_reply(tiny_engine):
    """It is not in the text, nor was any of it shown, and fewer tokens were made."""
    whole = await tiny_engine.generate(request(max_tokens=40))
    stop = whole.text[4:7]
    pieces: list[str] = []
    cut = await tiny_engine.generate(request(max_tokens=40, stop=("never there", stop)), pieces.append)
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)] == "".join(pieces)
    assert cut.generated_tokens < whole.generated_tokens


async def test_an_exception_in_on_text_belongs_to_its_caller(tiny_engine):
    """It ends that call and no other."""

    def broken(text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await tiny_engine.generate(request(max_tokens=200), broken)
    await until(lambda: tiny_engine.active_jobs == 0)
    assert (await tiny_engine.generate(request())).generated_tokens > 0


async def test_cancelling_frees_the_place(make_engine):
    """With room for one sequence, the next call runs as soon as the first caller is cancelled."""
    engine = make_engine(batch_size=1)
    with anyio.move_on_after(30) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(engine.generate, request(max_tokens=450), lambda text: group.cancel_scope.cancel())
    assert not scope.cancelled_caught
    reply = await engine.generate(request(max_tokens=3))
    assert reply.generated_tokens <= 3
    assert engine.active_jobs <= 1
    await until(lambda: engine.active_jobs == 0)


async def test_cancelling_in_the_queue_and_beside_others(make_engine):
    """Whoever is cancelled leaves, wherever it was; whoever is not gets the same answer as ever."""
    engine = make_engine(batch_size=2)
    asked = request("stays", 60)
    expected = await engine.generate(asked)
    got: list[Reply] = []

    async def stay() -> None:
        got.append(await engine.generate(asked))

    async with anyio.create_task_group() as group:
        group.start_soon(stay)
        async with anyio.create_task_group() as others:
            for n in range(5):
                others.start_soon(engine.generate, request(f"leaves {n}", 400))
            await until(lambda: engine.active_jobs == 2)
            others.cancel_scope.cancel()
    assert [reply.text for reply in got] == [expected.text]
    await until(lambda: engine.active_jobs == 0)


async def test_too_much_for_the_context_is_refused_before_any_work(tiny_engine):
    """Prompt and reply together may fill the context, not exceed it."""
    asked = request("x", 1)
    prompt = (await tiny_engine.generate(asked)).prompt_tokens
    with pytest.raises(ContextOverflow, match=r"make 513, and .* reads 512"):
        await tiny_engine.generate(request("x", 513 - prompt))
    with pytest.raises(ContextOverflow):
        await tiny_engine.score(request("x"), "y " * 300)
    with pytest.raises(UsageError, match="max_tokens"):
        await tiny_engine.generate(request("x", 0))


async def test_memory_admits_in_order_and_the_rest_wait(make_engine):
    """Two of this size fit: never more are inside, and all are answered. What could never fit is refused."""
    asked = [request(f"number {n} " + "x" * 40, 40) for n in range(6)]
    limit_tokens = 2 * 110  # such a call takes about 105, prompt and reply
    engine = make_engine(memory_bytes=limit_tokens * 256, prefix_bytes=0)  # two layers, two heads of 8, float32
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, engine.active_jobs)
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        replies = await together(engine, asked)
        group.cancel_scope.cancel()
    assert len(replies) == 6
    assert 1 <= most <= 2
    with pytest.raises(EngineError, match="allow more memory"):
        await engine.generate(request("x" * 200, 100))


async def test_a_score_is_the_sum_of_the_tokens_logprobs(make_engine):
    """A greedy reply scores what it was generated with; scoring reads a shared prompt once."""
    engine = make_engine()
    asked = request(LONG, 10)
    reply = await engine.generate(asked)
    score = await engine.score(asked, reply.text)
    assert score.prompt_tokens == reply.prompt_tokens
    assert score.cached_tokens == reply.prompt_tokens - 1
    if score.tokens == reply.generated_tokens:  # the text's own tokens may be fewer than were drawn
        assert score.logprob == pytest.approx(reply.logprob * reply.generated_tokens, rel=1e-3)
    assert (await engine.score(asked, "zq")).logprob < 0
    assert (await engine.score(asked, "")).tokens == 0


async def test_closing_fails_what_is_in_progress(make_engine):
    """Nobody hangs, and a closed engine says so to whoever comes later."""
    engine = make_engine(batch_size=1)
    failures: list[str] = []

    async def one(n: int) -> None:
        with pytest.raises(EngineError, match="closed") as caught:
            await engine.generate(request(f"{n}", 450))
        failures.append(str(caught.value))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for n in range(3):
                group.start_soon(one, n)
            await until(lambda: engine.active_jobs == 1)
            await engine.aclose()
        assert len(failures) == 3
        with pytest.raises(EngineError, match="closed"):
            await engine.generate(request())
        await engine.aclose()


async def test_a_failing_thread_fails_all_calls(tiny_path):
    """Whatever breaks inside, every caller gets an EngineError that names it."""
    loaded = load_model(str(tiny_path))
    engine = MlxEngine(lambda: msgspec.structs.replace(loaded, model=Breaking(loaded.model, calls=7)))
    failures: list[str] = []

    async def one(n: int) -> None:
        with pytest.raises(EngineError, match="the device is gone") as caught:
            await engine.generate(request(f"{n}", 100))
        failures.append(str(caught.value))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for n in range(4):
                group.start_soon(one, n)
        with pytest.raises(EngineError, match="the device is gone"):
            await engine.score(request(), "x")
        await engine.aclose()
    assert len(failures) == 4


class Breaking:
    """A model that fails after some calls."""

    def __init__(self, model, calls: int) -> None:
        self.layers = model.layers
        self._model = model
        self._left = calls

    def __call__(self, *args, **kwargs):
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the device is gone")
        return self._model(*args, **kwargs)


def test_one_engine_serves_several_loops(tiny_engine):
    """Nothing of a loop is kept from one call to the next."""
    texts = {
        anyio.run(tiny_engine.generate, request(), backend=backend).text for backend in ("asyncio", "trio", "asyncio")
    }
    assert len(texts) == 1


def test_what_loading_raises_is_raised_by_the_constructor(tmp_path):
    """And the thread is gone."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"no")
    with pytest.raises(EngineError, match="cannot be read"):
        load_engine(str(path))


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "engine._worker.submit(Job([5, 6, 7], 450, on_end=lambda outcome: None))",
        "anyio.run(engine.generate, Request((Message('user', 'x'),), 3)); anyio.run(engine.aclose)",
    ],
    ids=["idle", "busy", "closed"],
)
def test_a_program_ends_whatever_its_engine_does(tiny_path, ending):
    """Soon, with its own exit status, and without a crash of MLX's threads (seen more often than not, once)."""
    code = f"""
import anyio
from treering.runtime.engine import Message, Request
from treering.runtime.engines.models import load_engine
engine = load_engine({str(tiny_path)!r})
from treering.runtime.engines.mlx_batch import Job
{ending}
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
