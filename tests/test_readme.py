"""The README is true: its blocks are run as they stand, in one folder, and so are the commands of its promises.

Of what it shows, the words of the model, numbers and the names of runs may differ; all else must be the same.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from treering.cli.main import cli
from treering.runtime.engines.models import known_models

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)
MISSING = "the embedded model is not in the cache: `treering models pull` fetches it"
needs_model = pytest.mark.skipif(not known_models()[0].present, reason=MISSING)
VARIES = re.compile(r"(?P<sentence>\b[A-Z][a-z]+ .*\.$)|(?P<run>\b[0-9a-z]{10}\b)|(?P<number>\d+(?:\.\d+)?)", re.M)
ANOTHER = {"sentence": r"(?s:.+)", "run": r"\w{10}", "number": r"[\d.]+"}


def blocks(language):
    return [body for kind, body in BLOCKS if kind == language]


def sessions():
    """Each command of the console blocks with what is shown below it."""
    for block in blocks("console"):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.partition("\n")
            yield command, shown.strip()


def promises():
    """(command, whether it is said to fail) for each command in the table of promises."""
    for row in re.findall(r"^\|.*\| (.*) \|$", TEXT.partition("## What is promised")[2], re.M):
        for command in re.findall(r"`([^`]+)`", row):
            yield command, "(fails" in row


def spoken():
    """Every `treering …` in running text and tables."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
    return re.findall(r"`(treering [^`]+)`", prose)


def pattern(shown):
    """What may be printed where the README shows this: another sentence, another number, another run."""
    parts, at = [], 0
    for found in VARIES.finditer(shown):
        parts += [re.escape(shown[at : found.start()]), ANOTHER[found.lastgroup]]
        at = found.end()
    return "".join([*parts, re.escape(shown[at:])])


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Run a shell command where the README's files are; (exit code, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "examples").symlink_to(ROOT / "examples")
    for body in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", body)
        assert name, "a Python block begins with the name of its file"
        (folder / name[1]).write_text(body, encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("TREERING_STORE", None)

    def run(command):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def told(call):
    """What each command of the console blocks printed, run in order, once."""
    return [(command, shown, *call(command)) for command, shown in sessions()]


@needs_model
@pytest.mark.model
@pytest.mark.slow
def test_the_sessions_print_what_is_shown(told):
    """Every command of the console blocks ends well and prints what stands below it."""
    assert len(told) >= 4
    for command, shown, code, out, err in told:
        assert code == 0, f"{command}\n{out}{err}"
        assert re.fullmatch(pattern(shown), out.strip()), f"{command}\nexpected\n{shown}\nfound\n{out}"


@needs_model
@pytest.mark.model
@pytest.mark.slow
def test_the_promises_are_shown_by_their_commands(told, call):
    """In the order of the table; those of the tests and benchmarks, which take minutes, have to be there."""
    commands = list(promises())
    assert len(commands) >= 8
    for command, fails in commands:
        words = shlex.split(command)
        if words[0] == "pytest":
            assert (ROOT / words[1]).exists(), command
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists(), command
        elif words[0] in ("treering", "python"):
            code, out, err = call(command)
            assert code == int(fails), f"{command}\n{out}{err}"
            assert out.strip() or fails, f"{command} shows nothing"


@pytest.mark.parametrize("command", spoken())
def test_commands_that_are_spoken_of_exist(command):
    """With their options, also where a placeholder stands for a value."""
    _, name, *words = shlex.split(command)
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", "".join(blocks("sh")).splitlines())
def test_make_knows_its_targets(line):
    """The two commands of the first screen."""
    target = re.match(r"make (\w+) ", line)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_another_answer_or_number_is_allowed_and_another_shape_is_not():
    """What the comparison above can tell apart."""
    shown = "run tn6b70e86d at event 16: finished\n  1.1 reason  23+14 tokens  go\nanswer: Dogs are loyal."
    assert re.fullmatch(pattern(shown), shown)
    other = "run abcdefghij at event 9: finished\n  1.1 reason  3+40 tokens  go\nanswer: No\nidea"
    assert re.fullmatch(pattern(shown), other)
    assert not re.fullmatch(pattern(shown), other.replace("finished", "failed"))
    assert not re.fullmatch(pattern(shown), other.replace("answer", "reply"))


def test_the_examples_run(call):
    """On the scripted model: an agent over a text, then its replay."""
    store = "TREERING_STORE=examples.db"
    run = "treering run passage --input examples/survey.py --agent examples.survey:survey --model scripted"
    code, out, err = call(f"{store} {run}")
    assert code == 0, err
    assert "Reply" in out
    code, replayed, err = call(f"{store} python examples/replay.py last")
    assert code == 0, err
    assert replayed.startswith("1 finished: ['Reply")
