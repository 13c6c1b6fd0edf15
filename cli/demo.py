"""The demo: three jobs on Python's own language reference, with nothing but the embedded model."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treering.cli.configuring import loaded
from treering.cli.looking import show
from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import note, print_outcome
from treering.cli.running import go_on, start_run
from treering.events.catalogue import RunConfig
from treering.events.log import LogStore
from treering.tools.inputs import python_reference

if TYPE_CHECKING:
    from treering.cli.interrupting import Job

__all__ = ["demo"]

Say = Callable[[str], None]
_QUESTION = "What does the nonlocal statement do?"
_NEXT = "What does the global statement do?"
_TOPICS = ("nonlocal", "global", "pass", "del", "assert", "break", "continue", "return")


@click.command(short_help="Three jobs on Python's own reference.")
@click.option("--model", default="embedded", hidden=True)
@store_option
@json_option
@click.pass_context
def demo(context: click.Context, model: str, store: str | None, as_json: bool) -> None:
    """Answer two questions about Python's reference, shorten a part of it, and show what was recorded."""
    from treering.cli.interrupting import finish_job

    if model == "embedded":
        _fetch()
    say: Say = partial(click.echo, err=as_json)
    say(
        f"Python's own language reference has {len(python_reference()):,} characters. The model sees "
        f"{RunConfig('reader').window_tokens:,} tokens at a time, so each passage goes to a task of its own."
    )
    with closing(open_store(store, create=True)) as opened:
        asked: list[str] = []
        code = finish_job(lambda job: _jobs(opened, model, job, say, as_json, asked))
        if len(asked) == 2 and not as_json:
            click.echo(f"\n> treering show {asked[0]}")
            context.invoke(show, name=asked[0], store=store)
            _offer(asked, f" --store {store}" if store else "")
    raise SystemExit(code)


async def _jobs(opened: LogStore, model: str, job: "Job", say: Say, as_json: bool, asked: list[str]) -> int:
    """The three jobs; the worst of their exit codes. `asked` is given the two runs that they made."""
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        async with loaded(RunConfig("reader", model=model)) as engine:  # once for all three: loading takes seconds
            say(f"\n> treering run {_QUESTION!r} --input pydoc:topics")
            inputs: dict[str, Any] = {"paths": ["pydoc:topics"], "root": ""}
            found = await start_run(opened, engine, RunConfig("reader", model=model), _QUESTION, inputs, job)
            codes.append(print_outcome(found, as_json))
            asked.append(run := job.run)
            say(f"\n> treering ask {run} {_NEXT!r}    # the text is in the log: it is not read again")
            codes.append(print_outcome(await go_on(opened, run, _NEXT, engine=engine), as_json))
            path = _slice(Path(folder))
            say(
                f"\n> treering run 'Shorten this' --agent digest --input {path.name}    # {len(_TOPICS)} of its topics"
            )
            inputs = {"paths": [str(path)], "root": ""}
            config = RunConfig("digest", model=model)
            found = await start_run(opened, engine, config, "Shorten this", inputs, job)
            codes.append(print_outcome(found, as_json))
            asked.append(job.run)
    return max(codes)


def _offer(asked: list[str], where: str) -> None:
    run, shortened = asked
    click.echo("\nTry next:")
    for line, why in (
        (f"events {run}", "all that happened, one event a line"),
        (f"verify {run}", "nothing in the log was changed"),
        (f"show {shortened}", "the tree of the digest"),
        (f"ask {run} 'What is a lambda?'", "a question of your own"),
        ("runs", "all runs in this folder"),
    ):
        click.echo(f"  {f'{_program()} {line}{where}':<56} # {why}")


def _fetch() -> None:
    from treering.runtime.engines.models import known_models, pull

    model = known_models()[0]
    if not model.present:
        note(f"fetching the embedded model ({model.size_bytes / 1e6:.0f} MB), once")
    pull(model.name)


def _program() -> str:
    """How this program is called from here: `make` runs it by its path."""
    by_path = sys.argv[0].endswith("treering") and shutil.which("treering") is None
    return sys.argv[0] if by_path else "treering"


def _slice(folder: Path) -> Path:
    from pydoc_data.topics import topics

    path = folder / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in _TOPICS), encoding="utf-8")
    return path
