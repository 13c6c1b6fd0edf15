"""The program as a person calls it: processes in a folder of their own."""

import contextlib
import io
import os
import subprocess
import sys
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
