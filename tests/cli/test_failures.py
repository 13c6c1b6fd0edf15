"""What the author of an agent is told of a failure: what it was, and where."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from treering.cli.main import cli, code_of

AGENTS = """
async def parent(task, goal):
    return await task.spawn(middle, goal)


async def middle(task, goal):
    return await task.spawn(leaf, goal)


async def leaf(task, goal):
    await task.sleep(0)
    return look(goal)


def look(goal):
    return {}[goal]


async def wordy(task, goal):
    raise ValueError("one\\ntwo")


async def decoding(task, goal):
    import json
    return json.loads("{")
"""


DEEP = """
async def deep(task, goal):
    left = int(goal)
    return f"bottom {left}" if left == 0 else await task.spawn(deep, str(left - 1))


async def wide(task, goal):
    children = [task.spawn(one, str(number)) for number in range(100)]
    return await task.gather(*children)


async def one(task, goal):
    return 1 / (90 - int(goal))
"""


def _line(text):
    """The number of the line of AGENTS that holds `text`."""
    return 1 + next(at for at, line in enumerate(AGENTS.splitlines()) if text in line)


@pytest.fixture
def author(shell):
    """A folder with agents that fail."""
    (shell.folder / "mine.py").write_text(AGENTS)
    return shell


def _run(shell, agent, *more):
    return shell.call("run", "hi", "--agent", f"mine:{agent}", "--model", "scripted", *more)


def test_a_failure_says_its_kind_and_its_line(author):
    """The innermost of the tree, once, in one line; the same in the log, in the tree and as JSON."""
    code, out, err = _run(author, "parent")
    where = f"mine.py:{_line('return {}[goal]')}"
    said = f"task 1.1.1 failed: KeyError: 'hi' ({where})"
    assert (code, out) == (1, "")
    assert err.splitlines()[-2] == f"failed: {said}"
    assert json.loads(_run(author, "parent", "--json")[1])["error"] == said
    failed = json.loads(author.look("events", "last", "--task", "1.1.1", "--kind", "TaskFailed", "--json")[1])
    assert failed["body"]["failure"] == {"kind": "KeyError", "message": "'hi'", "line": where}
    assert f"KeyError: 'hi' ({where})" in author.look("show", "last")[1]


@pytest.mark.parametrize(
    ("agent", "said", "line"),
    [
        ("wordy", "ValueError: one two", 'raise ValueError("one'),
        ("decoding", "JSONDecodeError: Expecting", "json.loads"),
    ],
)
def test_a_failure_is_one_line_of_the_agents_own_code(author, agent, said, line):
    """Whatever the message holds, and however deep in a library it was raised."""
    err = _run(author, agent)[2]
    (failed,) = [one for one in err.splitlines() if one.startswith("failed: ")]
    assert failed.startswith(f"failed: {said}")
    assert failed.endswith(f"(mine.py:{_line(line)})")
    assert "\ntwo" not in err


def test_where_a_failure_stands_may_move(author):
    """A replay after the code was changed elsewhere takes the same path, and what is said stays as it is recorded."""
    _run(author, "parent")
    (author.folder / "mine.py").write_text("\n\n" + AGENTS)
    example = Path(__file__).parents[2] / "examples" / "replay.py"
    done = subprocess.run([sys.executable, example], cwd=author.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1 failed: None\n"), done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nasync def f(task, goal)\n    return 1\n", "SyntaxError: expected ':' (mine.py:2)"),
        ("x = 1\n\ny = 1 / 0\n", "ZeroDivisionError: division by zero (mine.py:3)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (mine.py:2)"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all' (mine.py:1)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(shell, text, said):
    """With its file and line, before a run begins."""
    (shell.folder / "mine.py").write_text(text)
    code, out, err = _run(shell, "f")
    assert (code, out) == (2, "")
    assert err == f"treering: expected the agent mine:f to be importable, found {said}\n"


def test_a_limit_that_was_met_is_raised_by_the_fork_that_is_named(shell):
    """What was done before is not done again."""
    (shell.folder / "mine.py").write_text(DEEP)
    code, _, err = shell.call("run", "4", "--agent", "mine:deep", "--model", "scripted")
    assert code == 1
    (advice,) = [line for line in err.splitlines() if line.startswith("to go on with more: treering ")]
    code, out, err = shell.call(*advice.removeprefix("to go on with more: treering ").split())
    assert (code, out) == (0, "bottom 0\n"), err


def test_a_task_that_failed_is_shown_however_many_there_are(shell):
    """Before those that finished."""
    (shell.folder / "mine.py").write_text(DEEP)
    assert shell.call("run", "go", "--agent", "mine:wide", "--model", "scripted", "--max-children", "100")[0] == 1
    shown = shell.look("show", "last")[1].splitlines()
    assert "ZeroDivisionError: division by zero (mine.py:13)" in shown[2]
    assert shown[2].startswith("  1.91 one  failed")
    assert shown[3].startswith("  1.1 one  finished")


def test_the_help_of_each_command_is_not_cut(shell):
    """In the list of all."""
    assert "..." not in shell.look("--help")[1].partition("Commands:")[2]


def test_an_unexpected_error_is_one_line_and_a_traceback_if_asked_for(monkeypatch, capsys):
    """It says that it is a defect, and how to see where."""

    @click.command()
    def broken() -> None:
        raise ExceptionGroup("a group", [RuntimeError("what\nis this")])

    monkeypatch.setitem(cli.commands, "broken", broken)
    assert code_of(["broken"]) == 1
    said = capsys.readouterr().err
    assert said == "treering: unexpected RuntimeError: what is this; this is a defect, TREERING_DEBUG=1 shows where\n"
    monkeypatch.setenv("TREERING_DEBUG", "1")
    with pytest.raises(ExceptionGroup):
        code_of(["broken"])


def test_an_agent_that_does_not_take_what_it_would_get_is_refused_before_a_run_begins(author):
    """So is one that reads, with nothing to read."""
    (author.folder / "town.md").write_text("Tomas Varga kept a parrot.\n")
    code, _, err = _run(author, "leaf", "--input", "town.md")
    assert code == 2
    assert err.startswith("treering: expected the agent mine:leaf to take a task, a goal and paths, root, found: ")
    for agent in ("reader", "digest"):
        code, _, err = author.call("run", "hi", "--agent", agent, "--model", "scripted")
        assert (code, err) == (2, f"treering: expected --input with the agent {agent}, found nothing to read\n")
    assert not (author.folder / ".treering").exists()
