"""The OpenAI-compatible engine against a scripted server on loopback, and against a real one."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.events.errors import UsageError
from treering.runtime.engine import ContextOverflow, EngineError, EngineTransientError, Message, Request
from treering.runtime.engines.openai import OpenAIEngine
from treering.runtime.engines.openai_wire import Events, Prices, context_size, retry_after_s
from treering.runtime.engines.rates import TokenBucket

KEY = "sk-very-secret-1234"
ASK = Request((Message("user", "hi"),), 8)
LIMIT_S = 30


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Answer(NamedTuple):
    """What the server does with one call. `hang_s` is waited for before the last of the pieces."""

    status: int = 200
    pieces: tuple[bytes, ...] = ()
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
    hang_s: float = 0.0
    drop: bool = False


class Server:
    """A server on loopback that gives its answers in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.ended = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.path, dict(self.headers), json.loads(body or b"null")))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("connection", "close")
                if answer.drop:
                    self.send_header("content-length", str(sum(map(len, answer.pieces)) + 100))
                self.end_headers()
                try:
                    for at, piece in enumerate(answer.pieces):
                        if at == len(answer.pieces) - 1 and answer.hang_s:
                            outer.ended.wait(answer.hang_s)
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:
                    pass  # the engine went away

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start a server that gives these answers."""
    servers: list[Server] = []

    def start(*answers: Answer) -> Server:
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def event(**fields: object) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
STREAM = (
    b": a comment\n\n",
    event(choices=[{"delta": {"role": "assistant", "content": None}}]),
    event(choices=[{"delta": {"content": "Hel"}}]),
    event(choices=[{"delta": {"content": "lö 👩"}, "finish_reason": None}]),
    event(choices=[{"delta": {}, "finish_reason": "stop"}]),
    event(choices=[], usage=USAGE),
    b"data: [DONE]\n\n",
)
GOOD = Answer(pieces=STREAM)


async def failure(engine: OpenAIEngine, kind: type[EngineError]) -> EngineError:
    """The error of one call; neither it, nor what it came from, nor the engine shows the key."""
    with anyio.fail_after(LIMIT_S), pytest.raises(EngineError) as caught:
        await engine.generate(ASK)
    await engine.aclose()
    error: BaseException | None = caught.value
    assert type(error) is kind
    assert "\n" not in str(error)
    assert KEY not in repr(engine) + str(vars(engine))
    while error is not None:
        assert KEY not in str(error) + repr(error)
        error = error.__cause__
    return caught.value


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_a_stream_is_collected_whatever_its_pieces(
    serve: Callable[..., Server], size: int, anyio_backend: str
) -> None:
    """Text, usage and cached tokens, however the bytes were split."""
    whole = b"".join(STREAM)
    server = serve(Answer(pieces=tuple(whole[at : at + size] for at in range(0, len(whole), size))))
    engine = OpenAIEngine("m", server.url, KEY, prices=Prices(1_000_000, 500_000, 3_000_000))
    seen: list[str] = []
    reply = await engine.generate(ASK, seen.append)
    await engine.aclose()
    assert (reply.text, reply.finish) == ("Hellö 👩", "stop")
    assert (reply.prompt_tokens, reply.generated_tokens, reply.cached_tokens) == (9, 2, 4)
    assert reply.cost_micros == 5 + 2 + 6
    assert "".join(seen) == reply.text


async def test_a_call_says_all_that_was_asked(serve: Callable[..., Server], anyio_backend: str) -> None:
    """Messages, sampling and the key go over the wire; a large seed is made to fit 31 bits."""
    server = serve(GOOD)
    engine = OpenAIEngine("m", server.url + "/", KEY)
    ask = Request((Message("system", "s"), Message("user", "ü")), 5, 0.5, 0.9, ("END",), 2**63 + 7)
    await engine.generate(ask)
    await engine.aclose()
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "ü"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_reply_ends_before_a_stop_sequence(serve: Callable[..., Server], anyio_backend: str) -> None:
    """Also where the server does not cut it off."""
    text = event(choices=[{"delta": {"content": "one END two"}, "finish_reason": "length"}])
    engine = OpenAIEngine("m", serve(Answer(pieces=(text,))).url)
    reply = await engine.generate(Request((Message("user", "hi"),), 8, stop=("END", "two")))
    await engine.aclose()
    assert (reply.text, reply.finish) == ("one ", "stop")


async def test_a_server_that_neither_streams_nor_counts(serve: Callable[..., Server], anyio_backend: str) -> None:
    """A whole completion is taken as it is, and its tokens are estimated."""
    body = json.dumps({"choices": [{"message": {"content": "Hello there"}, "finish_reason": "length"}]}).encode()
    engine = OpenAIEngine("m", serve(Answer(200, (body,), {"content-type": "application/json"})).url)
    reply = await engine.generate(ASK)
    await engine.aclose()
    assert (reply.text, reply.finish) == ("Hello there", "length")
    assert reply.prompt_tokens > 0
    assert reply.generated_tokens > 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(pieces=STREAM[:3]), "finish reason"),
        (Answer(pieces=()), "finish reason"),
        (Answer(pieces=STREAM[:3], drop=True), "broke off"),
        (Answer(pieces=(b"data: {nonsense\n\n",)), "broken JSON"),
        (Answer(pieces=(b"data: [1]\n\n",)), "not an object"),
        (Answer(pieces=(b"\xff\xfe\x00garbage" * 50,)), "finish reason"),
        (Answer(pieces=(event(error={"message": "slot lost"}),)), "slot lost"),
        (Answer(pieces=(b'error: {"code": 503, "message": "busy"}\n\n',)), "busy"),
        (Answer(500, (b'{"error": {"message": "out of luck"}}',)), "answered 500: out of luck"),
        (Answer(408), "answered 408"),
        (Answer(409), "answered 409"),
        (Answer(425), "answered 425"),
        (Answer(599), "answered 599"),
    ],
)
async def test_what_may_pass_is_worth_another_attempt(
    serve: Callable[..., Server], answer: Answer, says: str, anyio_backend: str
) -> None:
    """Half an answer is none; a broken stream and a server in trouble are no last word."""
    assert says in str(await failure(OpenAIEngine("m", serve(answer).url, KEY), EngineTransientError))


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (Answer(401, (KEY.encode(),)), EngineError, "OPENAI_API_KEY"),
        (Answer(403), EngineError, "OPENAI_API_KEY"),
        (Answer(404, (b'{"error": {"message": "no model m"}}',)), EngineError, "no model m"),
        (Answer(400, (f"bad key {KEY}\nnext line".encode(),)), EngineError, "bad key *** next line"),
        (Answer(400, (b"maximum context length is 4",)), ContextOverflow, "do not fit"),
        (Answer(400, (b'{"error": {"code": "context_length_exceeded"}}',)), ContextOverflow, "do not fit"),
        (Answer(429, (b'{"error": {"code": "insufficient_quota"}}',)), EngineError, "go on doing so"),
        (Answer(307, headers={"location": "/elsewhere"}), EngineError, "has moved"),
        (Answer(418, (b"x" * 5000,)), EngineError, "answered 418"),
        (
            Answer(pieces=(event(choices=[{"delta": {}, "finish_reason": "content_filter"}]),)),
            EngineError,
            "withheld",
        ),
        (Answer(pieces=(event(error={"code": 400, "message": "bad grammar"}),)), EngineError, "bad grammar"),
    ],
)
async def test_what_another_attempt_would_not_mend(
    serve: Callable[..., Server], answer: Answer, kind: type[EngineError], says: str, anyio_backend: str
) -> None:
    """A wrong key, a wrong model, too long a prompt: one clear line without the key."""
    error = await failure(OpenAIEngine("m", serve(answer).url, KEY), kind)
    assert says in str(error)
    assert len(str(error)) < 400


async def test_a_busy_server_says_how_long_to_wait(serve: Callable[..., Server], anyio_backend: str) -> None:
    """Retry-After is handed on, and the next attempt is answered."""
    server = serve(Answer(429, (b"busy",), {"Retry-After": "7"}), Answer(500, (b"down",)), GOOD)
    engine = OpenAIEngine("m", server.url, KEY)
    with pytest.raises(EngineTransientError) as busy:
        await engine.generate(ASK)
    assert busy.value.retry_after_s == 7.0
    with pytest.raises(EngineTransientError) as down:
        await engine.generate(ASK)
    assert down.value.retry_after_s is None
    assert (await engine.generate(ASK)).text == "Hellö 👩"
    await engine.aclose()
    assert len(server.asked) == 3


async def test_a_server_that_hangs_is_given_up(serve: Callable[..., Server], anyio_backend: str) -> None:
    """Between two bytes, and over the whole call while bytes still come."""
    server = serve(Answer(pieces=(STREAM[2], b"\n"), hang_s=20))
    says = str(await failure(OpenAIEngine("m", server.url, KEY, idle_timeout_s=0.2), EngineTransientError))
    assert "in time" in says
    says = str(await failure(OpenAIEngine("m", server.url, KEY, timeout_s=0.3), EngineTransientError))
    assert "0.3 s in all" in says


async def test_a_text_that_is_complete_survives_the_loss_of_its_end(
    serve: Callable[..., Server], anyio_backend: str
) -> None:
    """After the finish reason only the usage is missing, and it is estimated."""
    engine = OpenAIEngine("m", serve(Answer(pieces=STREAM[:5], drop=True)).url, KEY)
    reply = await engine.generate(ASK)
    await engine.aclose()
    assert (reply.text, reply.finish) == ("Hellö 👩", "stop")
    assert reply.prompt_tokens > 0


async def test_nobody_listens(anyio_backend: str) -> None:
    """A connection that is refused is worth another attempt, and no password of the address is shown."""
    engine = OpenAIEngine("m", "http://user:hidden@127.0.0.1:9/v1", KEY)
    error = await failure(engine, EngineTransientError)
    assert "http://127.0.0.1:9/v1" in str(error)
    assert "hidden" not in str(error) + repr(engine) + str(engine.info)


async def test_calls_beyond_the_limit_wait_and_a_cancelled_call_frees_its_place(
    serve: Callable[..., Server], anyio_backend: str
) -> None:
    """With one place, the second call goes on as soon as the first is cancelled."""
    server = serve(Answer(pieces=(STREAM[2], b"\n"), hang_s=20), GOOD)
    engine = OpenAIEngine("m", server.url, KEY, max_concurrent=1)
    started = anyio.Event()
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def first() -> None:
                with scope:
                    await engine.generate(ASK, lambda text: started.set())

            tasks.start_soon(first)
            await started.wait()
            with anyio.move_on_after(0.1) as waiting:
                await engine.generate(ASK)
            assert waiting.cancelled_caught
            assert len(server.asked) == 1
            scope.cancel()
        assert (await engine.generate(ASK)).text == "Hellö 👩"
    await engine.aclose()


async def test_closing_ends_the_calls_in_progress(serve: Callable[..., Server], anyio_backend: str) -> None:
    """They fail with EngineError, and so do later ones."""
    engine = OpenAIEngine("m", serve(Answer(pieces=(STREAM[2], b"\n"), hang_s=20)).url, KEY)
    started = anyio.Event()
    failures: list[EngineError] = []

    async def call() -> None:
        try:
            await engine.generate(ASK, lambda text: started.set())
        except EngineError as error:
            failures.append(error)

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await started.wait()
            await engine.aclose()
        await call()
    assert [type(error) for error in failures] == [EngineError, EngineError]
    assert all("closed" in str(error) for error in failures)


async def test_calls_begin_no_faster_than_the_rate(serve: Callable[..., Server], anyio_backend: str) -> None:
    """At 600 a minute, with ten at once, the eleventh waits its tenth of a second."""
    engine = OpenAIEngine("m", serve(GOOD).url, KEY, requests_per_minute=600)
    await engine.generate(ASK)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(13):
            tasks.start_soon(engine.generate, ASK)
    assert anyio.current_time() - began > 0.2
    await engine.aclose()


async def test_connect_asks_for_the_context(serve: Callable[..., Server], anyio_backend: str) -> None:
    """Found in llama.cpp's properties or in the list of models; a smaller size that was given stays."""
    props = Answer(200, (b'{"default_generation_settings": {"n_ctx": 4096}}',))
    template = Answer(200, (json.dumps({"prompt": "word " * 100 + "x"}).encode(),))
    engine = OpenAIEngine("m", serve(props, template).url)
    assert engine.info.context_tokens == 8192
    info = await engine.connect()
    assert info.context_tokens == 4096
    assert info.overhead_tokens >= 100
    await engine.aclose()
    models = Answer(200, (b'{"data": [{"id": "other"}, {"id": "m", "max_model_len": 32768}]}',))
    engine = OpenAIEngine("m", serve(Answer(404), models, Answer(404)).url, context_tokens=2048)
    assert (await engine.connect()).context_tokens == 2048
    await engine.aclose()
    engine = OpenAIEngine("m", serve(Answer(401)).url)
    with pytest.raises(EngineError, match="wants a key"):
        await engine.connect()
    await engine.aclose()


def test_an_engine_refuses_what_cannot_work() -> None:
    """An address that is none, and a key that no header can carry, which is not shown."""
    for url in ("", "127.0.0.1:8080", "ftp://host/v1", "http://", "http://host:port"):
        with pytest.raises(UsageError, match="address"):
            OpenAIEngine("m", url, KEY)
    with pytest.raises(UsageError) as raised:
        OpenAIEngine("m", "http://host/v1", "sk-secret\x00ü")
    assert "secret" not in str(raised.value)


def test_counting_is_from_above_and_exact_with_a_tokenizer(tmp_path: Any) -> None:
    """The estimate is never under a word a token; a tokenizer's own padding and cutting are switched off."""
    tokenizers = pytest.importorskip("tokenizers")
    message = Message("user", "the parrot kept the light " * 20)
    assert OpenAIEngine("m", "http://host/v1").count(message) >= 100
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(10)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    engine = OpenAIEngine("m", "http://host/v1", tokenizer=tmp_path)
    assert engine.count(message) - engine.count(Message("user", "")) == 100
    with pytest.raises(UsageError, match="not a tokenizer"):
        OpenAIEngine("m", "http://host/v1", tokenizer=tmp_path / "none")


def test_counting_by_the_server(serve: Callable[..., Server]) -> None:
    """Each new text is asked for once; a server that cannot count leaves the estimate."""
    server = serve(Answer(200, (b'{"tokens": [1, 2, 3]}',)))
    engine = OpenAIEngine("m", server.url, KEY, tokenize=True)
    counts = [engine.count(Message("user", "a long text that is three tokens")) for _ in range(3)]
    assert len(set(counts)) == len(server.asked) == 1
    assert engine.count(Message("user", "another")) == counts[0]
    estimate = OpenAIEngine("m", server.url).count(ASK.messages[0])
    assert OpenAIEngine("m", serve(Answer(404)).url, tokenize=True).count(ASK.messages[0]) == estimate


@given(st.lists(st.text(max_size=8), max_size=6), st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_events_do_not_depend_on_how_bytes_are_split(texts: list[str], cuts: list[int], crlf: bool) -> None:
    """Every way to cut a stream gives the same events; a last blank line may be missing."""
    payloads = [json.dumps(text).encode() for text in texts]
    end = b"\r\n" if crlf else b"\n"
    whole = b"".join(b"id: 1%sdata: %s%s%s" % (end, payload, end, end) for payload in payloads)[: -len(end)]
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    events = Events()
    found = [payload for low, high in pairwise(places) for payload in events.feed(whole[low:high])]
    assert found + events.close() == payloads


def test_an_event_without_end_is_refused() -> None:
    """Memory stays bounded whatever a server sends."""
    events = Events()
    for _ in range(8):
        assert events.feed(b"x" * 2**20) == []
    with pytest.raises(EngineTransientError, match="more than"):
        events.feed(b"x")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:40:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """Seconds, milliseconds or a date, never negative."""
    assert retry_after_s(headers, 784111777.0 - 60.0) == expected


def test_context_size_is_read_where_it_stands() -> None:
    """What llama.cpp trained with comes last, and nonsense is passed over."""
    assert context_size({"data": [{"id": "x", "meta": {"n_ctx_train": 8192}}]}, "m") == 8192
    assert context_size({"data": [{"id": "x", "meta": {"n_ctx": 512, "n_ctx_train": 8192}}]}, "m") == 512
    nonsense: object
    for nonsense in (None, [], {"data": 3}, {"data": [3]}, {"default_generation_settings": {"n_ctx": True}}):
        assert context_size(nonsense, "m") is None


@given(st.lists(st.floats(0.0, 3.0), max_size=60), st.integers(1, 5))
def test_a_bucket_keeps_to_its_rate(gaps: list[float], burst: int) -> None:
    """Over every stretch no more calls begin than the burst and what the rate adds."""
    now = 0.0
    begins: list[float] = []
    bucket = TokenBucket(60.0, burst, lambda: now)
    for gap in gaps:
        now += gap
        begins.append(now + bucket.reserve_s())
    assert begins == sorted(begins)
    for first in range(len(begins)):
        for last in range(first, len(begins)):
            assert last - first + 1 <= burst + (begins[last] - begins[first]) + 1e-6


@pytest.mark.model
async def test_a_real_server_answers(anyio_backend: str) -> None:
    """llama.cpp with the embedded model: text, usage, cached tokens, its context, and an overflow."""
    xllamacpp = pytest.importorskip("xllamacpp")
    models = pytest.importorskip("treering.runtime.engines.models")
    try:
        path = models.resolve(models.DEFAULT_MODEL)
    except UsageError:
        pytest.skip("the embedded model is not in the cache")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 1024, 1, 0, False
    params.cpuparams.n_threads = 2
    server = xllamacpp.Server(params)
    engine = OpenAIEngine("any", f"{server.listening_address}/v1", tokenize=True)
    info = await engine.connect()
    assert info.context_tokens == 1024
    ask = Request((Message("user", "Name the capital of France."),), 16)
    replies = [await engine.generate(ask) for _ in range(2)]
    assert "Paris" in replies[0].text
    assert replies[1].text == replies[0].text
    assert replies[1].cached_tokens > 0
    counted = sum(map(engine.count, ask.messages)) + info.overhead_tokens
    assert replies[0].prompt_tokens <= counted <= replies[0].prompt_tokens + 8
    with pytest.raises(ContextOverflow, match="do not fit"):
        await engine.generate(Request((Message("user", "word " * 2000),), 16))
    await engine.aclose()
    del server
