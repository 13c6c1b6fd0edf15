"""Runs that are held, interrupted and cancelled, by two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

AGENT = """
async def slow(task, goal):
    await task.sleep(3.0 if goal == "slow" else 0)
    return f"done {goal}"
"""


@pytest.fixture
def start(tmp_path):
    """Start a command in a folder of its own; the process."""
    (tmp_path / "mine.py").write_text(AGENT)
    started = []

    def begin(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "treering.cli.main", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def _slow(start):
    """A run that is in the middle of its question."""
    process = start("run", "slow", "--agent", "mine:slow", "--model", "scripted")
    for _ in range(100):
        if "slow" in _end(start("events", "last", "--kind", "TaskSpawned"))[1]:
            return process
        time.sleep(0.05)
    raise AssertionError("the run did not begin")


def test_an_interrupted_run_says_how_to_go_on_and_does(start):
    """Ctrl-C loses nothing."""
    process = _slow(start)
    process.send_signal(signal.SIGINT)
    code, out, err = _end(process)
    assert (code, out) == (1, "")
    assert "interrupted; treering resume" in err
    assert "  interrupted  " in _end(start("runs"))[1]
    code, out, err = _end(start("show", "last"))
    assert ": interrupted, agent" in out
    assert "go on with: treering resume" in err
    assert _end(start("resume", "last"))[:2] == (0, "done slow\n")
    assert _end(start("verify", "last"))[0] == 0


def test_a_question_to_a_held_run_waits_for_its_holder(start):
    """The command does not fail: the question is left in the inbox, and answered by the next to hold the run."""
    process = _slow(start)
    code, _, err = _end(start("ask", "last", "second"))
    assert code == 0
    assert f"process {process.pid} holds" in err
    assert _end(process)[1] == "done slow\n"
    assert _end(start("resume", "last"))[:2] == (0, "done second\n")


def test_cancel_ends_the_question_that_runs_and_is_recorded(start):
    """What was said to be cancelled is so in the log, once the process is gone."""
    process = _slow(start)
    assert _end(start("cancel", "last"))[0] == 0
    assert _end(process)[0] == 1
    assert "TaskCancelled" in _end(start("events", "last"))[1]


def test_an_interrupted_question_is_cancelled_at_once(start):
    """Whoever cancels holds the run for that; the next question is not touched."""
    process = _slow(start)
    assert "  running  " in _end(start("runs"))[1]
    process.send_signal(signal.SIGINT)
    _end(process)
    code, out, err = _end(start("cancel", "last", "--json"))
    assert code == 0, err
    assert json.loads(out)["status"] == "cancelled"
    assert "  cancelled  " in _end(start("runs"))[1]
    assert _end(start("resume", "last"))[0] == 1
    assert _end(start("ask", "last", "next"))[:2] == (0, "done next\n")
    assert _end(start("verify", "last"))[0] == 0


def test_cancel_without_a_question_that_runs_is_refused(start):
    """Its message would wait and end the next question instead."""
    assert _end(start("run", "quick", "--agent", "mine:slow", "--model", "scripted"))[0] == 0
    assert _end(start("cancel", "last"))[0] == 2
    assert _end(start("ask", "last", "next"))[:2] == (0, "done next\n")
