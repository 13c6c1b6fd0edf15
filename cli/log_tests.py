"""Log tests: does an agent still take the path of a log, and if it should not, what is the new one?

Owns the replay of an exported file and the making of the file that takes its place. The engine is loaded only to
accept a change. Invariant: a file is replaced by a whole one or not at all.
"""

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import msgspec

from treering.cli.configuring import loaded, on_engine
from treering.cli.sharing import write_lines
from treering.events.errors import Divergence, TreeringError
from treering.events.in_memory import InMemoryStore
from treering.replays.exporting import export_lines, import_log
from treering.runtime.engine import Engine
from treering.runtime.errors import ReplayEnded
from treering.runtime.journal import Reuse
from treering.runtime.registry import AgentFunction
from treering.runtime.runner import Runner, create_run, open_log, spawned_at

__all__ = ["Replayed", "accept_log", "replay_log"]


class Replayed(msgspec.Struct, frozen=True):
    """How a replay ended: `text` says what is wrong, "" for nothing; `diverged` if the code took another path."""

    text: str = ""
    diverged: bool = False
    model: str = ""


def replay_log(path: Path, agents: dict[str, AgentFunction] | None = None) -> Replayed:
    """Run the agents of an exported log again on its recorded outcomes alone."""
    store, model = InMemoryStore(), ""

    async def replay(run: str) -> None:
        async with Runner(store, run, agents=agents, replay=True) as runner:
            await runner.replay()

    try:
        run = import_log(store, path).run
        model = open_log(store, run)[0].config.model
        anyio.run(replay, run)
    except Divergence as error:
        return Replayed(_diverged(path, error), True, model)
    except ReplayEnded as error:
        return Replayed(f"the agent goes on where the log {path} ends: {error}", True, model)
    except TreeringError as error:
        return Replayed(str(error))
    except OSError as error:
        return Replayed(f"expected a log at {path}, found: {error.strerror}")
    return Replayed()


def _diverged(path: Path, error: Divergence) -> str:
    where = f"task {error.task} op {error.op}" if error.op else f"the end of task {error.task}"
    shown = "\n".join(f"  {line}" for line in error.difference.splitlines())
    return f"the agent took another path than {path}\nat {where}, in {error.line}\n\n{shown}"


def accept_log(
    path: Path, agents: dict[str, AgentFunction] | None = None, engine: Engine | None = None
) -> tuple[str, str]:
    """Ask a log's questions again, taking over every outcome whose request is the same, and replace the file.

    Returns why that failed ("" if it did not) and what was done.
    """
    store = InMemoryStore()

    async def ask(old: str) -> tuple[str, str]:
        before, journal, _, _ = open_log(store, old)
        async with AsyncExitStack() as stack:
            asked = engine if engine is not None else await stack.enter_async_context(loaded(before.config))
            run = create_run(store, on_engine(before.config, asked))
            runner = await stack.enter_async_context(Runner(store, run, asked, agents=agents))
            runner.reuse = Reuse(lambda: journal, (), True)
            for root in before.roots:
                question = spawned_at(store, old, before.tasks[root].spawned)
                outcome = await runner.ask(question.goal, msgspec.json.decode(question.inputs))
                if outcome.status != before.tasks[root].status:
                    return f"the changed agent {outcome.status} ({outcome.error}); {path} is as it was", ""
            totals = runner.state.totals
        write_lines(export_lines(store, run), path)
        return "", f"{totals.reused} replies taken over, {totals.prompt + totals.generated} tokens paid"

    try:
        return anyio.run(ask, import_log(store, path).run)
    except TreeringError as error:
        return f"{error}; {path} is as it was", ""
