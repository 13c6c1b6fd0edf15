"""The commands that make a run go on: run, ask, resume, cancel.

Owns how a question and its inputs become a run, and how a run goes on. All that lasts is in the log: stopping
any of these at any instant loses nothing that was finished.
"""

import os
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treering.cli.configuring import changed, loaded, on_engine, settings_options
from treering.cli.live import watching
from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import note, print_json, print_outcome, result_object
from treering.events.catalogue import Refused
from treering.events.codec import decode
from treering.events.errors import LeaseHeld, UsageError
from treering.events.log import LogStore, find_run
from treering.replays.listing import summarise

if TYPE_CHECKING:
    from treering.cli.interrupting import Job
    from treering.events.catalogue import RunConfig
    from treering.runtime.engine import Engine

__all__ = ["ask", "ask_run", "cancel", "go_on", "list_paths", "resume", "run", "start_run"]

_SHOWN_SKIPPED = 3


def list_paths(inputs: tuple[str, ...]) -> tuple[list[str], str]:
    """The files to read, as absolute paths, and the folder they are named below ("" for none).

    Several inputs are named below the folder that they have in common, so that two files of one name are told apart.
    What cannot be read is said here, before anything begins; in a folder it is passed over. Raises InputError.
    """
    from treering.tools.inputs import PYTHON_REFERENCE, check_input, list_inputs

    paths: list[str] = []
    for given in inputs:
        skipped: dict[str, list[str]] = {}
        for found in list_inputs(given, lambda name, why: skipped.setdefault(why, []).append(name)):  # noqa: B023 (called here)
            if not Path(given).is_dir():
                check_input(found)
            paths.append(given if given == PYTHON_REFERENCE else str(found.resolve()))
        for why, names in skipped.items():
            some = ", ".join(names[:_SHOWN_SKIPPED]) + (", …" if len(names) > _SHOWN_SKIPPED else "")
            files = f"{len(names)} file{'s' if len(names) > 1 else ''}"
            note(f"passed over {files} in {given}: {why} ({some})")
    places = [Path(given).resolve() for given in dict.fromkeys(inputs) if given != PYTHON_REFERENCE]
    if not places or (len(places) == 1 and not places[0].is_dir()):
        return list(dict.fromkeys(paths)), ""
    return list(dict.fromkeys(paths)), os.path.commonpath([at if at.is_dir() else at.parent for at in places])


async def go_on(
    store: LogStore,
    name: str,
    question: str | None,
    *,
    inputs: dict[str, Any] | None = None,
    engine: "Engine | None" = None,
    take_over: bool = False,
    live_tools: bool = False,
) -> dict[str, Any]:
    """Take a run's lease and ask it a question, or (None) resume it; what came of it, as `result_object` gives it.

    The model is loaded only once the lease is ours and something is left to do. An `engine` that is given stays
    the caller's to close. Raises LeaseHeld.
    """
    from treering.runtime.runner import Runner

    started = time.monotonic()
    note(f"run {name}")  # first of all: whoever stops this knows how to go on
    async with AsyncExitStack() as stack:
        shown, know = stack.enter_context(watching())
        runner = Runner(store, name, take_over=take_over, live_tools=live_tools, **shown)
        await stack.enter_async_context(runner)
        know(runner.state)
        if question is None and not runner.state.roots:
            raise UsageError(f"run {name} has no question yet; treering ask {name} QUESTION")
        if engine is None and (question is not None or not runner.idle):
            engine = await stack.enter_async_context(loaded(runner.state.config))
        if engine is not None:
            runner.use(engine)
        outcome = await (runner.resume() if question is None else runner.ask(question, inputs))
        found = result_object(name, runner.state, outcome, runner.unreached, time.monotonic() - started)
        return {**found, "advice": _advice(store, name, found["error"])}


def _advice(store: LogStore, run: str, error: str) -> str:
    """How to go on from before what was refused, if a question failed of that; else ""."""
    for record in store.read(run, kinds=["Refused"]) if error else ():
        refused = decode(record).event
        if isinstance(refused, Refused) and f"{refused.what} allows {refused.limit:g}" in error:
            option = f"--{refused.what.replace('_', '-')}"
            more = f"{refused.needed:g}" if refused.what.startswith("max") else "MORE"
            return f"treering fork {run} --at {refused.cause.seq - 1} {option} {more} --start"
    return ""


async def start_run(
    store: LogStore,
    engine: "Engine",
    config: "RunConfig",
    question: str,
    inputs: dict[str, Any],
    job: "Job",
) -> dict[str, Any]:
    """A new run with its first question; what came of it. The engine stays the caller's to close."""
    from treering.runtime.runner import create_run

    job.run = create_run(store, on_engine(config, engine))
    return await go_on(store, job.run, question, inputs=inputs, engine=engine)


async def ask_run(store: LogStore, name: str, question: str, as_json: bool) -> int:
    """The next question of a run; the exit code. If another process holds the run, it will take the question."""
    try:
        found = await go_on(store, name, question)
    except LeaseHeld as held:
        store.post(name, "ask", question)
        note(f"{held.holder} holds run {name}: the question waits for it; treering show {name}")
        if as_json:
            print_json({"run": name, "status": "posted", "answer": None})
        return 0
    return print_outcome(found, as_json)


@click.command()
@click.argument("question")
@click.option("--input", "inputs", multiple=True, help="A file or folder to read, or pydoc:topics. May repeat.")
@settings_options(inherited=False)
@store_option
@json_option
def run(question: str, inputs: tuple[str, ...], store: str | None, as_json: bool, **options: Any) -> None:
    """Ask QUESTION about the inputs; answer with citations."""
    from treering.cli.interrupting import finish_job
    from treering.runtime.registry import Agents

    if not question.strip():
        raise UsageError("expected a question, found an empty one")
    config = changed(None, options)
    paths, root = list_paths(inputs)
    if not paths and config.agent in ("reader", "digest"):
        raise UsageError(f"expected --input with the agent {config.agent}, found nothing to read")
    given = {"paths": paths, "root": root} if paths else {}
    Agents().check(config.agent, given)

    async def work(job: "Job") -> int:
        async with loaded(config) as engine:
            found = await start_run(opened, engine, config, question, given, job)
        return print_outcome(found, as_json)

    with closing(open_store(store, create=True)) as opened:
        code = finish_job(work)
    raise SystemExit(code)


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("question")
@store_option
@json_option
def ask(name: str, question: str, store: str | None, as_json: bool) -> None:
    """The next question of a run, which remembers the ones before."""
    from treering.cli.interrupting import finish_job

    if not question.strip():
        raise UsageError("expected a question, found an empty one")

    async def work(job: "Job") -> int:
        job.run = find_run(opened, name).run
        return await ask_run(opened, job.run, question, as_json)

    with closing(open_store(store)) as opened:
        code = finish_job(work)
    raise SystemExit(code)


@click.command(short_help="Go on with a run from what is on disk.")
@click.argument("name", metavar="RUN")
@click.option("--take-over", is_flag=True, help="Take the run from the process that holds it.")
@click.option("--live-tools", is_flag=True, help="In a fork: tools may act where the parent did not call them so.")
@store_option
@json_option
def resume(name: str, take_over: bool, live_tools: bool, store: str | None, as_json: bool) -> None:
    """Go on with a run from what is on disk; what was finished is not paid for again."""
    from treering.cli.interrupting import finish_job

    async def work(job: "Job") -> int:
        job.run = find_run(opened, name).run
        return print_outcome(await go_on(opened, job.run, None, take_over=take_over, live_tools=live_tools), as_json)

    with closing(open_store(store)) as opened:
        code = finish_job(work)
    raise SystemExit(code)


@click.command(short_help="End the question that RUN is at.")
@click.argument("name", metavar="RUN")
@store_option
@json_option
def cancel(name: str, store: str | None, as_json: bool) -> None:
    """End the question of RUN: at once if nobody goes on with it, else by the process that holds it."""
    import anyio

    with closing(open_store(store)) as opened:
        row = find_run(opened, name)
        status = summarise(opened, row).status
        if status not in ("running", "interrupted"):  # the message would wait, and end the next question instead
            raise UsageError(f"expected run {row.run} to be running, found it {status}; there is nothing to cancel")
        status = anyio.run(_cancel, opened, row.run)
    note(f"run {row.run} is cancelled" if status == "cancelled" else f"asked run {row.run} to stop")
    if as_json:
        print_json({"run": row.run, "status": status})


async def _cancel(store: LogStore, run: str) -> str:
    from treering.runtime.runner import Runner

    try:
        async with Runner(store, run) as runner:
            if await runner.cancel() is None:
                raise UsageError(f"expected run {run} to be running, found that it ended just now")
    except LeaseHeld:
        store.post(run, "cancel", "")
        return "cancelling"
    return "cancelled"
