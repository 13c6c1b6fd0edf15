"""A pytest plugin: exported logs as regression tests of one's own agents.

Owns the collection of `*.jsonl` logs under the folders of `treering_logs`, the fixture `treering_replay`, and the
words of a failure. A test passes if the agent's code, run on the recorded outcomes with no model and no tool, takes
the recorded path. Nothing but pytest is imported until a log is tested, so that others do not pay for it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from treering.runtime.engine import Engine
    from treering.runtime.registry import AgentFunction

__all__ = ["pytest_addoption", "pytest_collect_file", "pytest_terminal_summary", "treering_replay"]

_ACCEPTED: "pytest.StashKey[list[str]]" = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    parser.addini("treering_logs", "Folders or files of logs (treering export) to replay as tests.", "paths", [])
    parser.getgroup("treering").addoption(
        "--treering-accept",
        action="store_true",
        help="Where an agent took another path than its log: run it, asking the model for what the log does not hold, "
        "and write the log anew.",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "_LogFile | None":
    """Called by pytest."""
    if file_path.suffix == ".jsonl":
        folders: list[Path] = parent.config.getini("treering_logs")
        if any(file_path.is_relative_to(folder) for folder in folders):
            return _LogFile.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Called by pytest."""
    for line in config.stash.get(_ACCEPTED, []):
        terminalreporter.write_line(f"treering: {line}")


@pytest.fixture
def treering_replay(request: pytest.FixtureRequest) -> "Callable[..., None]":
    """A function that replays a log: `treering_replay("logs/run.jsonl", agents={"name": function})`.

    `agents` are those that the log knows by a short name; `engine` is asked where a change is accepted.
    """

    def replay(
        log: "str | Path", agents: "dict[str, AgentFunction] | None" = None, engine: "Engine | None" = None
    ) -> None:
        failed = _test_log(request.config, Path(log), agents, engine)
        if failed:
            pytest.fail(failed, pytrace=False)

    return replay


class _LogFile(pytest.File):
    def collect(self) -> "Iterator[_LogItem]":
        yield _LogItem.from_parent(self, name=self.path.stem)


class _LogItem(pytest.Item):
    def runtest(self) -> None:
        failed = _test_log(self.config, self.path, None, None)
        if failed:
            pytest.fail(failed, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"treering log {self.name}"


def _test_log(
    config: pytest.Config, log: Path, agents: "dict[str, AgentFunction] | None", engine: "Engine | None"
) -> str:
    """Replay one log; why it fails, "" if it does not. A change that is accepted is no failure."""
    from treering.cli.log_tests import accept_log, replay_log

    found = replay_log(log, agents)
    if not found.text:
        return ""
    if not found.diverged:
        return found.text
    if not config.getoption("--treering-accept"):
        return (
            f"{found.text}\n\nIf this change is meant, accept it with:  pytest --treering-accept {log}\n"
            f"(it runs the agent, asks the model {found.model or 'of the test'} for what the log does not hold, "
            "calls tools likewise, and writes the log anew)"
        )
    failed, done = accept_log(log, agents, engine)
    if not failed:
        config.stash.setdefault(_ACCEPTED, []).append(f"accepted {log}: {done}")
    return failed
