"""Runs that others hold, follow and take over; what going on costs."""

import json
import os
import signal
import threading

import anyio
import pytest

from treering.cli.running import go_on
from treering.events.catalogue import RunConfig
from treering.events.errors import LeaseHeld
from treering.events.in_memory import InMemoryStore
from treering.replays.verifying import verify
from treering.runtime.runner import create_run

AGENT = """
async def slow(task, goal):
    for number in range(20):
        await task.sleep(0.15 if goal == "slow" else 0)
    return f"done {goal}"
"""


@pytest.fixture
def slow(shell):
    """A folder with an agent that takes three seconds, or none."""
    (shell.folder / "mine.py").write_text(AGENT)
    return shell


class Counting(InMemoryStore):
    """Counts how often a whole log is read."""

    def __init__(self) -> None:
        super().__init__()
        self.folds = 0

    def read(self, run, after=0, until=None, task=None, kinds=None):
        self.folds += after == 0 and task is None and kinds is None
        return super().read(run, after, until, task, kinds)


def _finished_run():
    store = Counting()
    run = create_run(store, RunConfig("reader", model="scripted"))
    anyio.run(lambda: go_on(store, run, "first"))
    store.folds = 0
    return store, run


@pytest.mark.parametrize("question", ["second", None])
def test_a_log_is_read_once_to_go_on(question):
    """Neither to find the model nor to see whether anything is left is it folded again."""
    store, run = _finished_run()
    found = anyio.run(lambda: go_on(store, run, question))
    assert found["status"] == "finished"
    assert store.folds == 1


def test_a_log_is_read_once_to_be_verified():
    """Its chain and what follows in it are checked in one go."""
    store, run = _finished_run()
    assert verify(store, run).events == store.head(run)[0]
    assert store.folds == 1


def test_a_held_run_is_refused_before_its_model_is_loaded():
    """The model of this run could not even be found."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("reader", model="nobody's"))
    lease = store.acquire(run)
    with pytest.raises(LeaseHeld):
        anyio.run(lambda: go_on(store, run, "question"))
    lease.release()


def test_a_held_run_is_refused_and_says_who_holds_it(slow):
    """Resume does not wait."""
    process = slow.start("run", "slow", "--agent", "mine:slow", "--model", "scripted")
    slow.wait_for("Sampled")
    code, out, err = slow.call("resume", "last")
    assert (code, out) == (1, "")
    assert f"found process {process.pid} writing to it" in err
    assert "--take-over" in err
    assert slow.end(process)[:2] == (0, "done slow\n")


def test_a_stopped_holder_can_be_taken_over_and_appends_nothing_after(slow):
    """Whoever wakes up finds that the run is not its own any more, in one line."""
    process = slow.start("run", "slow", "--agent", "mine:slow", "--model", "scripted")
    slow.wait_for("Sampled", 2)
    process.send_signal(signal.SIGSTOP)
    assert slow.call("resume", "last")[0] == 1
    code, out, _ = slow.call("resume", "last", "--take-over")
    assert (code, out) == (0, "done slow\n")
    process.send_signal(signal.SIGCONT)
    code, out, err = slow.end(process)
    assert (code, out) == (1, "")
    assert "another process took it over" in err
    assert "Traceback" not in err
    assert slow.look("verify", "last")[0] == 0
    assert json.loads(slow.look("show", "last", "--json")[1])["answer"] == "done slow"


def test_following_shows_the_events_of_another_process_as_they_come(slow):
    """The last one comes before anyone stops it, and Ctrl-C ends it quietly."""
    process = slow.start("run", "slow", "--agent", "mine:slow", "--model", "scripted")
    slow.wait_for("TaskSpawned")
    follower = slow.start("events", "last", "--follow", "--json")
    lines = []
    seen = threading.Event()

    def read():
        for line in follower.stdout:
            lines.append(json.loads(line))
            if lines[-1]["kind"] == "TaskFinished":
                seen.set()
                return

    reader = threading.Thread(target=read)
    reader.start()
    assert slow.end(process)[0] == 0
    assert seen.wait(5)
    reader.join()
    os.kill(follower.pid, signal.SIGINT)
    assert follower.wait(5) == 0
    assert follower.stderr.read() == ""
    assert [line["seq"] for line in lines] == list(range(1, 24))
