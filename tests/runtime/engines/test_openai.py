"""The OpenAI-compatible engine against a scripted server on loopback."""

import http.server
import json
import threading

import pytest

from treering.runtime.engine import ContextOverflow, EngineError, EngineTransientError, Message, Request
from treering.runtime.engines.openai import OpenAIEngine

KEY = "sk-very-secret-1234"
ASK = Request((Message("user", "hi"),), 8)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def _event(**fields):
    return f"data: {json.dumps(fields)}\n\n".encode()


GOOD = [
    _event(choices=[{"delta": {"content": "Hel"}}]),
    _event(choices=[{"delta": {"content": "lö"}, "finish_reason": "stop"}]),
    _event(
        choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    ),
    b"data: [DONE]\n\n",
]


@pytest.fixture
def serve():
    """Start a server that answers with (status, headers, pieces)."""
    servers = []

    def start(status, pieces, **headers):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("connection", "close")
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return OpenAIEngine("m", f"http://127.0.0.1:{server.server_port}/v1", KEY, timeout_s=5)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


async def _fails(engine, kind):
    with pytest.raises(EngineError) as caught:
        await engine.generate(ASK)
    await engine.aclose()
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_a_stream_is_collected_whatever_its_pieces(serve, size, anyio_backend):
    """Text, usage and cached tokens, however the bytes were split."""
    whole = b"".join(GOOD)
    engine = serve(200, [whole[at : at + size] for at in range(0, len(whole), size)])
    seen = []
    reply = await engine.generate(ASK, seen.append)
    await engine.aclose()
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.generated_tokens, reply.cached_tokens) == (
        "Hellö",
        "stop",
        9,
        2,
        4,
    )
    assert "".join(seen) == "Hellö"


async def test_a_stream_without_a_finish_reason_is_a_failure(serve, anyio_backend):
    """Half an answer is none."""
    assert "finish" in str(await _fails(serve(200, GOOD[:1]), EngineTransientError))


async def test_a_broken_stream_is_worth_another_attempt(serve, anyio_backend):
    """Nonsense on the wire passes."""
    await _fails(serve(200, [b"data: {nonsense\n\n"]), EngineTransientError)


async def test_a_busy_server_says_how_long_to_wait(serve, anyio_backend):
    """Retry-After is handed on."""
    assert (await _fails(serve(429, [b"busy"], Retry_After="7"), EngineTransientError)).retry_after_s == 7.0
    await _fails(serve(503, [b"down"]), EngineTransientError)


async def test_what_another_attempt_would_not_mend(serve, anyio_backend):
    """A wrong key, a wrong model, too long a prompt."""
    assert "OPENAI_API_KEY" in str(await _fails(serve(401, [KEY.encode()]), EngineError))
    await _fails(serve(404, [b""]), EngineError)
    await _fails(serve(400, [b"maximum context length is 4"]), ContextOverflow)


async def test_nobody_listens(anyio_backend):
    """A connection that is refused is worth another attempt."""
    await _fails(OpenAIEngine("m", "http://127.0.0.1:9/v1", KEY, timeout_s=2), EngineTransientError)
