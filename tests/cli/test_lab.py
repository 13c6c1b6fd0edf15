"""The command `lab`, as a person calls it."""

import json

import pytest

AGENT = """
from treering.runtime.task import Task


async def keeper(task: Task, goal: str) -> int:
    for number in range(12):
        await task.remember(f"fact {number} " + "and more " * (number % 4), pinned=number == 3)
        await task.recall(f"fact {number * 5 % 7}", 2)
    return 0
"""


@pytest.fixture
def kept(shell):
    """A run whose agent uses its memory."""
    (shell.folder / "keeping.py").write_text(AGENT)
    arguments = ("run", "keep", "--agent", "keeping:keeper", "--model", "scripted", "--retention", "lru:12", "--json")
    code, out, err = shell.call(*arguments, PYTHONPATH=str(shell.folder))
    assert code == 0, err
    return json.loads(out)["run"]


def test_a_run_is_compared_under_every_policy(shell, kept):
    """A table, what would be chosen, and a picture; as JSON with keys that stay."""
    code, out, err = shell.call("lab", kept, "--plot", "tokens.svg", "--size", "12")
    assert code == 0, err
    assert all(rule in out for rule in ("lru:12", "sieve:12", "s3fifo:12", "actr:12", "window:", "none", "optimum"))
    assert "it would choose" in out
    assert "<svg" in (shell.folder / "tokens.svg").read_text()
    code, out, _ = shell.call("lab", kept, "--json", "--policy", "sieve", "--policy", "lru:6", "--size", "20%")
    assert code == 0
    found = json.loads(out)
    assert [one["policy"].split(":")[0] for one in found["policies"]] == ["sieve", "lru"]
    assert {"accesses", "optimum", "exact", "choice", "parts"} <= found.keys()
    assert {"hit_ratio", "regret", "evictions", "resident", "ns_per_access"} <= found["policies"][0].keys()


def test_pins_over_the_size_are_reported(shell):
    """They are allowed, and `show` says so."""
    (shell.folder / "keeping.py").write_text(AGENT.replace("number == 3", "number < 8"))
    arguments = ("run", "keep", "--agent", "keeping:keeper", "--model", "scripted", "--retention", "lru:12")
    assert shell.call(*arguments, PYTHONPATH=str(shell.folder))[0] == 0
    code, out, _ = shell.call("show", "last")
    assert code == 0
    assert "over the 12 of the policy" in out
    memories = json.loads(shell.call("show", "last", "--json")[1])["memories"]
    assert 12 < memories["pinned_tokens"] <= memories["hot_tokens"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("lab",), "neither"),
        (("lab", "last", "--trace", "t.trace"), "both"),
        (("lab", "--trace", "absent.trace"), "absent.trace"),
        (("lab", "--trace", "t.trace", "--policy", "lfu"), "retention policy"),
        (("lab", "--trace", "t.trace", "--policy", "lru:0"), "above 0"),
        (("lab", "--trace", "t.trace", "--size", "0"), "expected a size"),
        (("lab", "--trace", "t.trace", "--plot", "t.pdf"), ".svg"),
        (("lab", "--trace", "t.trace", "--plot", "no/folder/t.svg"), "write the plot"),
    ],
)
def test_bad_input_is_one_clear_line(shell, arguments, expected):
    """What was expected, what was found; nothing on stdout."""
    (shell.folder / "t.trace").write_text("1\n2\n1\n2\n3\n1\n")
    code, out, err = shell.call(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err
