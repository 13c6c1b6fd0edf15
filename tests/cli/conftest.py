"""The program as a person calls it: processes in a folder of their own."""

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from treering.cli.main import code_of


class Shell:
    """Commands in `folder`. `call` waits for the end: (exit code, stdout, stderr); `start` does not.

    `look` is `call` in this process, for commands that only look: a fifth of the time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "treering.cli.main", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._started.append(process)
        return process

    def call(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        return self.end(self.start(*arguments, **environment))

    def look(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = code_of(arguments)
        return code, out.getvalue(), err.getvalue()

    def end(self, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def wait_for(self, kind: str, count: int = 1) -> None:
        """Return once the last run holds `count` events of this kind."""
        for _ in range(200):
            if len(self.look("events", "last", "--kind", kind)[1].splitlines()) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {kind} came")

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.close()


class Model(http.server.BaseHTTPRequestHandler):
    """A server on loopback that answers each model call with `body`, and can read `context` tokens."""

    body = b""
    kind = "text/event-stream"
    context = 3000
    hang_s = 0.0
    together: threading.Barrier | None = None
    ended = threading.Event()

    def do_GET(self) -> None:
        self._send("application/json", json.dumps({"default_generation_settings": {"n_ctx": self.context}}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/chat/completions"):
            self.ended.wait(self.hang_s)
            if self.together is not None:
                self.together.wait(30)  # raises, and gives no answer, unless so many calls come side by side
            self._send(self.kind, self.body)
        else:
            self.send_error(404)

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked is gone
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve():
    """Start a server whose model answers with this text, or these bytes; its address."""
    servers = []

    def start(reply: str | bytes, **fields: object) -> str:
        if isinstance(reply, str):
            choice = {"delta": {"content": reply}, "finish_reason": "stop"}
            reply = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        own = type("Own", (Model,), {"body": reply, "ended": threading.Event(), **fields})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), own)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.RequestHandlerClass.ended.set()
        server.shutdown()
        server.server_close()
