"""The commands that make a run go on: run, ask, resume, fork, cancel.

Owns how a question, its inputs and its engine become a run. All that lasts is in the log: stopping any of
these at any instant loses nothing that was finished.
"""

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import click

from treering.cli.live import watching
from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import note, print_json, print_result, result_object
from treering.events.catalogue import Budget, Limits, RunConfig
from treering.events.errors import LeaseHeld, UsageError
from treering.events.log import LogStore, find_run
from treering.memory.retention import parse_retention
from treering.runtime.engine import Engine
from treering.runtime.registry import Agents
from treering.runtime.runner import Outcome, Runner, create_run, fork_run, open_log

__all__ = ["ask", "ask_run", "cancel", "config_of", "fork", "list_paths", "load", "resume", "run", "start_run"]

Action = Callable[[Runner], Awaitable[Outcome | None]]
_SIZE = click.IntRange(min=1)


def load(model: str, base_url: str = "") -> Engine:
    """The engine that `model` names. Blocking, seconds."""
    if model == "scripted":
        from treering.runtime.testing import ScriptedEngine

        return ScriptedEngine()
    if model.startswith("openai:"):
        if not base_url:
            raise UsageError(f"expected --base-url with the model {model}, found none")
        from treering.runtime.engines.openai import OpenAIEngine

        engine: Engine = OpenAIEngine(model.removeprefix("openai:"), base_url)
        return engine
    from treering.runtime.engines.models import load_engine

    return load_engine(model)


def list_paths(inputs: tuple[str, ...]) -> tuple[list[str], str]:
    """The files to read, as absolute paths, and the folder they are named below ("" for none)."""
    from treering.tools.inputs import PYTHON_REFERENCE, list_inputs

    paths: list[str] = []
    for given in inputs:
        for found in list_inputs(given, lambda name, why: note(f"passed over {name}: {why}")):
            paths.append(given if given == PYTHON_REFERENCE else str(found.resolve()))  # noqa: PERF401 (with its callback)
    for path in paths:
        if path != PYTHON_REFERENCE and not os.access(path, os.R_OK):
            raise UsageError(f"{path}: this file may not be read")
    folder = inputs[0] if len(inputs) == 1 and Path(inputs[0]).is_dir() else ""
    return list(dict.fromkeys(paths)), str(Path(folder).resolve()) if folder else ""


def config_of(engine: Engine, agent: str, model: str, **settings: Any) -> RunConfig:
    """The configuration of a run on this engine."""
    found = engine.info
    return RunConfig(
        agent,
        model=model,
        weights=found.weights,
        template=found.template,
        context_tokens=found.context_tokens,
        overhead_tokens=found.overhead_tokens,
        **settings,
    )


def perform(
    store: LogStore, run: str, engine: Engine | None, action: Action, quiet: bool, keep: bool = False, **options: Any
) -> int:
    """Open the run, do `action`, print what came of it; the exit code. Closes the engine, unless told to `keep` it."""
    found: dict[str, Any] = {}

    async def work() -> None:
        try:
            with watching(quiet) as observer:
                async with Runner(store, run, engine, observers=[observer], **options) as runner:
                    found.update(result_object(run, runner.state, await action(runner)))
        finally:
            if engine is not None and not keep:
                with anyio.CancelScope(shield=True):
                    await engine.aclose()

    if not anyio.run(_interruptible, work):
        note(f"interrupted; treering resume {run}")
        return 1
    print_json(found) if quiet else print_result(found)
    return 0 if found["status"] == "finished" else 1


async def _interruptible(work: Callable[[], Awaitable[None]]) -> bool:
    """Do `work`; False if Ctrl-C ended it. A second Ctrl-C ends the process."""
    failed: Exception | None = None
    done = False

    async def watch(scope: anyio.CancelScope) -> None:
        pressed = 0
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                pressed += 1
                if pressed > 1:
                    os._exit(1)
                scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(watch, scope)
            try:
                await work()
                done = True
            except Exception as error:
                failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return done


def start_run(
    store: LogStore,
    engine: Engine,
    config: RunConfig,
    question: str,
    inputs: dict[str, Any],
    quiet: bool,
    keep: bool = False,
) -> tuple[str, int]:
    """A new run with its first question; its id and the exit code."""
    name = create_run(store, config)
    if not quiet:
        note(f"run {name}")
    return name, perform(store, name, engine, lambda runner: runner.ask(question, inputs), quiet, keep)


def ask_run(store: LogStore, name: str, question: str, quiet: bool, engine: Engine | None = None) -> int:
    """The next question of a run; the exit code. If another process holds the run, it will take the question.

    An `engine` that is given stays the caller's to close.
    """
    keep = engine is not None
    if engine is None:
        config = open_log(store, name)[0].config
        engine = load(config.model, config.base_url)
    try:
        return perform(store, name, engine, lambda runner: runner.ask(question), quiet, keep)
    except LeaseHeld:
        store.post(name, "ask", question)
        note(f"another process holds run {name}: the question waits for it; treering show {name}")
        if quiet:
            print_json({"run": name, "status": "posted", "answer": None})
        return 0


@click.command()
@click.argument("question")
@click.option("--input", "inputs", multiple=True, help="A file or folder to read, or pydoc:topics. May repeat.")
@click.option("--agent", default="reader", show_default=True, help="reader, digest or MODULE:FUNCTION.")
@click.option(
    "--model", default="embedded", show_default=True, help="A known model, folder, hub name or openai:NAME."
)
@click.option("--base-url", default="", help="Where an openai:NAME model is served.")
@click.option("--window", default=2048, show_default=True, type=_SIZE, help="Tokens of a task's window.")
@click.option("--seed", default=0, show_default=True, type=int, help="Of all that is sampled.")
@click.option("--concurrency", default=8, show_default=True, type=_SIZE, help="Model calls at the same time.")
@click.option(
    "--max-depth", default=4, show_default=True, type=_SIZE, help="Levels of tasks, the question's own included."
)
@click.option("--max-children", default=32, show_default=True, type=_SIZE, help="Children of one task.")
@click.option("--max-tasks", default=500, show_default=True, type=_SIZE, help="Tasks under one question.")
@click.option("--budget-tokens", default=None, type=_SIZE, help="Tokens, prompts included, that it may cost.")
@click.option(
    "--budget-seconds", default=None, type=click.FloatRange(min=0, min_open=True), help="Seconds of its ops, summed."
)
@click.option("--retention", default="window:10000", show_default=True, help="window:TOKENS or none.")
@store_option
@json_option
def run(question: str, inputs: tuple[str, ...], agent: str, model: str, base_url: str, **options: Any) -> None:
    """Ask QUESTION about the inputs; answer with citations."""
    if not question.strip():
        raise UsageError("expected a question, found an empty one")
    parse_retention(options["retention"])
    Agents().resolve(agent)
    paths, root = list_paths(inputs)
    given = {"paths": paths, "root": root} if paths or agent in ("reader", "digest") else {}
    with closing(open_store(options["store"], create=True)) as store:
        engine = load(model, base_url)
        config = config_of(
            engine,
            agent,
            model,
            base_url=base_url,
            seed=options["seed"],
            window_tokens=options["window"],
            retention=options["retention"],
            concurrency=options["concurrency"],
            limits=Limits(options["max_depth"], options["max_children"], options["max_tasks"]),
            budget=Budget(options["budget_tokens"], options["budget_seconds"]),
        )
        code = start_run(store, engine, config, question, given, options["as_json"])[1]
    raise SystemExit(code)


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("question")
@store_option
@json_option
def ask(name: str, question: str, store: str | None, as_json: bool) -> None:
    """The next question of a run, which remembers the ones before."""
    if not question.strip():
        raise UsageError("expected a question, found an empty one")
    with closing(open_store(store)) as opened:
        code = ask_run(opened, find_run(opened, name).run, question, as_json)
    raise SystemExit(code)


def _go_on(store: LogStore, name: str, quiet: bool, take_over: bool) -> int:
    state = open_log(store, name)[0]
    if state.status == "empty":
        raise UsageError(f"run {name} has no question yet; treering ask {name} QUESTION")
    idle = state.status != "running" and not state.asked and not store.inbox(name, state.inbox)
    engine = None if idle else load(state.config.model, state.config.base_url)
    return perform(store, name, engine, lambda runner: runner.resume(), quiet, take_over=take_over)


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--take-over", is_flag=True, help="Take the run from the process that holds it.")
@store_option
@json_option
def resume(name: str, take_over: bool, store: str | None, as_json: bool) -> None:
    """Go on with a run from what is on disk; what was finished is not paid for again."""
    with closing(open_store(store)) as opened:
        code = _go_on(opened, find_run(opened, name).run, as_json, take_over)
    raise SystemExit(code)


def _edits(given: tuple[str, ...]) -> list[tuple[int, str]]:
    edits = []
    for one in given:
        seq, sign, text = one.partition("=")
        if not sign or not seq.isdecimal():
            raise UsageError(f"expected --set SEQ=TEXT, found {one!r}")
        edits.append((int(seq), text))
    return edits


@click.command()
@click.argument("name", metavar="RUN")
@click.option(
    "--at", type=_SIZE, default=None, help="The last event to share. Default: all, or up to the first edit."
)
@click.option("--set", "edits", multiple=True, metavar="SEQ=TEXT", help="Let this outcome of a model be TEXT.")
@click.option("--start", is_flag=True, help="Go on in the fork at once.")
@store_option
@json_option
def fork(name: str, at: int | None, edits: tuple[str, ...], start: bool, store: str | None, as_json: bool) -> None:
    """A new run that shares the past of RUN and can go another way."""
    with closing(open_store(store)) as opened:
        parent = find_run(opened, name).run
        where = at if at is not None else opened.head(parent)[0]
        made = fork_run(opened, parent, where, _edits(edits))
        code = 0
        if start:
            note(f"run {made}")
            code = _go_on(opened, made, as_json, False)
        elif as_json:
            print_json({"run": made, "parent": parent, "cut": opened.head(made)[0] - 1})
        else:
            click.echo(made)
            note(f"go on with: treering resume {made}")
    raise SystemExit(code)


@click.command()
@click.argument("name", metavar="RUN")
@store_option
@json_option
def cancel(name: str, store: str | None, as_json: bool) -> None:
    """Ask the process that holds RUN to end its question."""
    with closing(open_store(store)) as opened:
        found = find_run(opened, name).run
        status = open_log(opened, found)[0].status
        if status != "running":  # the message would wait, and end the next question instead
            raise UsageError(f"expected run {found} to be running, found it {status}; there is nothing to cancel")
        opened.post(found, "cancel", "")
    note(f"asked run {found} to stop")
    if as_json:
        print_json({"run": found, "status": "cancelling"})
