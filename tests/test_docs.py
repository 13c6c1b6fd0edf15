"""The docs say what the code does: the commands' help, the files they name, the order of the decisions."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRITER = runpy.run_path(str(ROOT / "docs" / "write_cli.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
MADE_WHEN_RUN = (".treering/", "dist/", "build/")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def test_the_page_of_the_commands_is_what_they_say():
    """Whoever changes a command writes the page again."""
    assert WRITER["PAGE"].read_text(encoding="utf-8") == WRITER["page"](), "run `make docs`"


@pytest.mark.parametrize("context", list(WRITER["commands"]()), ids=lambda context: context.command_path)
def test_every_command_and_option_says_what_it_does(context):
    """A person at a terminal has only the help."""
    assert context.command.help, context.command_path
    for option in context.command.params:
        assert option.param_type_name == "argument" or option.hidden or option.help, option.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_a_page_names_is_there(page):
    """Files and folders in backticks, from the root of the repository, and the targets of links."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|md|toml))`", text)
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    for path in named:
        assert path.startswith(MADE_WHEN_RUN) or (ROOT / path).exists(), f"{name_of(page)} names {path}"
    for path in linked:
        assert (page.parent / path).exists(), f"{name_of(page)} links to {path}"


def test_paths_are_found_where_they_are_named():
    """The pattern above finds something; else its test would always hold."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "`runtime/state.py`" in text


def test_the_architecture_lists_the_folders_from_the_bottom_up():
    """In the order in which they import each other: a folder those above it in the table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)/` \|", text, re.M)
    assert listed == ["events", "memory", "tools", "runtime", "replays", "cli"]


def test_decisions_are_numbered_dated_and_titled():
    """Numbers without a gap, dates that never go back, and the number in the file's name."""
    dates = []
    for number, page in enumerate(DECISIONS, start=1):
        title, blank, date, *_ = page.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(rf"# {number:04} [A-Z].+[^.]", title), f"{page.name} begins with {title!r}"
        assert page.name.startswith(f"{number:04}-")
        assert blank == ""
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), f"{page.name} has no date"
        dates.append(date)
    assert dates
    assert dates == sorted(dates)
