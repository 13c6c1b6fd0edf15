"""Forks with edits and with another configuration, as a person makes them."""

import json

import pytest

AGENTS = """
async def two(task, goal):
    first = await task.generate("first " + goal, max_tokens=8)
    if first.text.startswith("stop"):
        return "stopped"
    second = await task.generate("second", max_tokens=8)
    return [first.text, second.text]


async def other(task, goal):
    first = await task.generate("first " + goal, max_tokens=8)
    third = await task.generate("third", max_tokens=8)
    return [first.text, third.text]


async def reads(task, goal, paths=(), root=""):
    for path in paths:
        await task.add_input(path, root or None)
    return len(task.sources)


async def deep(task, goal):
    await task.now()
    depth = len(task.path.split("."))
    return depth if depth == 6 else await task.spawn(deep, goal)


async def hungry(task, goal):
    for number in range(4):
        await task.generate(f"call {number}", max_tokens=8, keep=False)
    return "fed"
"""


@pytest.fixture
def forks(shell):
    """A folder with agents, where runs and forks are made."""
    (shell.folder / "mine.py").write_text(AGENTS)
    return shell


def _run(shell, agent, *more):
    return shell.call("run", "go", "--agent", f"mine:{agent}", "--model", "scripted", "--json", *more)


def _seqs(shell, run, kind):
    lines = shell.look("events", run, "--kind", kind, "--json")[1].splitlines()
    return [json.loads(line)["seq"] for line in lines]


def _fork(shell, *more):
    code, out, err = shell.call("fork", "last", *more, "--start", "--json")
    assert out, err
    assert shell.look("verify", "last")[0] == 0
    return code, json.loads(out), err


def test_an_edit_that_is_never_reached_is_reported(forks):
    """The first edit makes the run end before the op of the second."""
    _run(forks, "two")
    first, second = _seqs(forks, "last", "ModelReplied")
    code, found, err = _fork(forks, "--set", f"{first}=stop now", "--set", f"{second}=never said")
    assert (code, found["answer"], found["unreached"]) == (0, "stopped", [second])
    assert f"the edit of event {second} was never reached" in err
    code, out, err = forks.call("resume", "last", "--json")
    assert json.loads(out)["unreached"] == [second]


def test_edits_that_are_reached_are_applied_each_at_its_op(forks):
    """Also by another process than the one that applied the first."""
    _run(forks, "two")
    first, second = _seqs(forks, "last", "ModelReplied")
    code, found, _ = _fork(forks, "--set", f"{first}=one", "--set", f"{second}=two")
    assert (code, found["answer"], found["unreached"]) == (0, ["one", "two"], [])
    assert json.loads(forks.call("resume", "last", "--json")[1])["unreached"] == []


def test_another_window_holds_after_the_shared_part_only(forks):
    """What was said in the larger window stays; the next call does not fit the smaller one."""
    answer = json.loads(_run(forks, "two")[1])["answer"]
    first, _ = _seqs(forks, "last", "ModelReplied")
    code, found, _ = _fork(forks, "--at", str(first), "--window", "9")
    assert code == 1
    assert "a window of 9 tokens" in found["error"]
    assert _seqs(forks, "last", "ModelReplied")[0] == first
    code, found, _ = _fork(forks, "--at", str(first), "--window", "4000")
    assert (code, found["answer"]) == (0, answer)
    assert forks.call("fork", "last", "--window", "9999999")[0] == 2


def test_another_model_answers_only_what_comes_after_the_shared_part(forks, serve):
    """The fork does not diverge in its past, and a child of it does not either."""
    answer = json.loads(_run(forks, "two")[1])["answer"]
    first, _ = _seqs(forks, "last", "ModelReplied")
    model = ("--model", "openai:x", "--base-url", serve("from afar"))
    code, found, _ = _fork(forks, "--at", str(first), *model)
    assert (code, found["answer"]) == (0, [answer[0], "from afar"])
    code, found, _ = _fork(forks)
    assert (code, found["answer"]) == (0, [answer[0], "from afar"])


def test_another_agent_is_asked_again_and_takes_over_what_is_equal(forks):
    """The call that both make is not paid for twice."""
    answer = json.loads(_run(forks, "two")[1])["answer"]
    code, found, _ = _fork(forks, "--agent", "mine:other")
    assert code == 0
    assert found["answer"][0] == answer[0]
    assert found["answer"][1] != answer[1]
    assert found["reused"] == 1
    assert "mine:other" in forks.look("show", "last")[1]


def test_another_agent_reads_what_was_read_even_if_it_is_gone(forks):
    """Inputs are read once."""
    (forks.folder / "town.md").write_text("Tomas Varga kept a parrot.\n")
    assert json.loads(_run(forks, "reads", "--input", "town.md")[1])["answer"] == 1
    (forks.folder / "town.md").unlink()
    code, found, _ = _fork(forks, "--agent", "reader")
    assert code == 0, found
    assert len(_seqs(forks, "last", "InputAdded")) == 1


def test_other_limits_and_budgets_hold_after_the_shared_part(forks):
    """A question that met its limit goes on from before it under a larger one."""
    assert _run(forks, "deep")[0] == 1
    before = _seqs(forks, "last", "TaskSpawned")[-1] - 1
    code, found, _ = _fork(forks, "--at", str(before), "--max-depth", "7")
    assert (code, found["answer"]) == (0, 6)
    code, out, _ = _run(forks, "hungry", "--budget-tokens", "40")
    assert code == 1
    assert "budget_tokens allows 40" in json.loads(out)["error"]
    before = _seqs(forks, "last", "Refused")[0] - 2
    code, found, _ = _fork(forks, "--at", str(before), "--budget-tokens", "400")
    assert (code, found["answer"]) == (0, "fed")


def test_a_fork_that_is_not_started_is_gone_on_with_by_resume(forks):
    """With the configuration it was given."""
    _run(forks, "two")
    code, out, err = forks.call("fork", "last", "--agent", "mine:other", "--json")
    made = json.loads(out)
    assert (code, made["cut"]) == (0, 1)
    code, out, err = forks.call("resume", made["run"], "--json")
    assert code == 0, err
    assert json.loads(out)["reused"] == 1


def test_a_tool_acts_in_a_fork_only_if_it_is_told_to(shell):
    """What the parent did not call so is refused, and the line names the command that lets it act."""
    (shell.folder / "mine.py").write_text(
        "async def act(what: str) -> str:\n"
        "    with open('done.txt', 'a') as file:\n"
        "        file.write(what + '\\n')\n"
        "    return what\n\n\n"
        "async def agent(task, goal):\n"
        "    said = (await task.generate(goal, max_tokens=8)).text\n"
        "    return await task.call(act, what=said.split()[0])\n"
    )
    code, out, err = shell.call("run", "go", "--agent", "mine:agent", "--model", "scripted", "--json")
    assert code == 0, err
    reply = json.loads(shell.look("events", "last", "--kind", "ModelReplied", "--json")[1])["seq"]
    code, _, err = shell.call("fork", "last", "--set", f"{reply}=Other", "--start")
    assert code != 0
    assert "--live-tools" in err
    assert "Other" not in (shell.folder / "done.txt").read_text()
    code, out, err = shell.call("resume", "last", "--live-tools", "--json")
    assert code == 0, err
    assert json.loads(out)["answer"] == "Other"
    assert (shell.folder / "done.txt").read_text().splitlines()[-1] == "Other"
