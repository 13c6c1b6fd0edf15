"""The demo: three jobs on Python's own language reference, with nothing but the embedded model."""

import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treering.cli.configuring import loaded
from treering.cli.looking import show
from treering.cli.opening import open_store, store_option
from treering.cli.printing import note, print_outcome
from treering.cli.running import go_on, start_run
from treering.events.catalogue import RunConfig
from treering.events.log import LogStore
from treering.tools.inputs import python_reference

if TYPE_CHECKING:
    from treering.cli.interrupting import Job

__all__ = ["demo"]

_QUESTION = "What does the nonlocal statement do?"
_NEXT = "What does the global statement do?"
_TOPICS = ("nonlocal", "global", "pass", "del", "assert", "break", "continue", "return")


@click.command()
@click.option("--model", default="embedded", hidden=True)
@store_option
@click.pass_context
def demo(context: click.Context, model: str, store: str | None) -> None:
    """Answer two questions about Python's reference, shorten a part of it, and show what was recorded."""
    from treering.cli.interrupting import finish_job

    if model == "embedded":
        _fetch()
    click.echo(
        f"Python's own language reference has {len(python_reference()):,} characters. The model sees "
        f"{RunConfig('reader').window_tokens:,} tokens at a time, so each passage goes to a task of its own."
    )
    with closing(open_store(store, create=True)) as opened:
        code = finish_job(lambda job: _demo(opened, model, job, context, store))
    raise SystemExit(code)


async def _demo(opened: LogStore, model: str, job: "Job", context: click.Context, store: str | None) -> int:
    where = f" --store {store}" if store else ""
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        async with loaded(
            RunConfig("reader", model=model), False
        ) as engine:  # once for all three: loading takes seconds
            click.echo(f"\n> treering run {_QUESTION!r} --input pydoc:topics")
            inputs: dict[str, Any] = {"paths": ["pydoc:topics"], "root": ""}
            found = await start_run(opened, engine, RunConfig("reader", model=model), _QUESTION, inputs, False, job)
            codes.append(print_outcome(found, False))
            run = job.run
            click.echo(f"\n> treering ask {run} {_NEXT!r}    # the text is in the log: it is not read again")
            codes.append(print_outcome(await go_on(opened, run, _NEXT, False, engine=engine), False))
            path = _slice(Path(folder))
            click.echo(
                f"\n> treering run 'Shorten this' --agent digest --input {path.name}    # {len(_TOPICS)} of its topics"
            )
            inputs = {"paths": [str(path)], "root": ""}
            config = RunConfig("digest", model=model)
            found = await start_run(opened, engine, config, "Shorten this", inputs, False, job)
            codes.append(print_outcome(found, False))
    click.echo(f"\n> treering show {run}")
    context.invoke(show, name=run, store=store)
    click.echo("\nTry next:")
    for line, why in (
        (f"events {run}", "all that happened, one event a line"),
        (f"verify {run}", "nothing in the log was changed"),
        (f"show {job.run}", "the tree of the digest"),
        (f"ask {run} 'What is a lambda?'", "a question of your own"),
        ("runs", "all runs in this folder"),
    ):
        click.echo(f"  {f'{_program()} {line}{where}':<56} # {why}")
    return max(codes)


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
