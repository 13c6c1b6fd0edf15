"""The demo: three jobs on Python's own language reference, with nothing but the embedded model."""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treering.cli.configuring import loaded
from treering.cli.opening import open_store, store_option
from treering.cli.printing import note, print_outcome, print_tree
from treering.cli.running import go_on, start_run
from treering.events.catalogue import RunConfig
from treering.events.log import LogStore

if TYPE_CHECKING:
    from treering.cli.interrupting import Job

__all__ = ["demo"]

_QUESTION = "What does the nonlocal statement do?"
_NEXT = "What does the global statement do?"
_TOPICS = ("nonlocal", "global", "pass")


@click.command()
@click.option("--model", default="embedded", hidden=True)
@store_option
def demo(model: str, store: str | None) -> None:
    """Answer two questions about Python's reference, shorten a part of it, and show what was recorded."""
    from treering.cli.interrupting import finish_job

    if model == "embedded":
        from treering.runtime.engines.models import pull

        note("fetching the embedded model (98 MB) unless it is here")
        pull(model)
    with closing(open_store(store, create=True)) as opened:
        code = finish_job(lambda job: _demo(opened, model, job, f" --store {store}" if store else ""))
    raise SystemExit(code)


async def _demo(store: LogStore, model: str, job: "Job", where: str) -> int:
    from treering.runtime.runner import open_log

    codes = []
    with tempfile.TemporaryDirectory() as folder:
        async with loaded(
            RunConfig("reader", model=model), False
        ) as engine:  # once for all three: loading takes seconds
            click.echo(f"\n> treering run {_QUESTION!r} --input pydoc:topics")
            inputs: dict[str, Any] = {"paths": ["pydoc:topics"], "root": ""}
            found = await start_run(store, engine, RunConfig("reader", model=model), _QUESTION, inputs, False, job)
            codes.append(print_outcome(found, False))
            run = job.run
            click.echo(f"\n> treering ask {run} {_NEXT!r}")
            codes.append(print_outcome(await go_on(store, run, _NEXT, False, engine=engine), False))
            click.echo("\n> treering run 'Shorten this' --agent digest --input topics.txt")
            inputs = {"paths": [str(_slice(Path(folder)))], "root": ""}
            found = await start_run(
                store, engine, RunConfig("digest", model=model), "Shorten this", inputs, False, job
            )
            codes.append(print_outcome(found, False))
    click.echo(f"\n> treering show {run}")
    print_tree(open_log(store, run)[0])
    click.echo("\nTry next:")
    for line in (f"events {run}", f"verify {run}", f"show {job.run}", f"ask {run} 'What is a lambda?'", "runs"):
        click.echo(f"  treering {line}{where}")
    return max(codes)


def _slice(folder: Path) -> Path:
    from pydoc_data.topics import topics

    path = folder / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in _TOPICS), encoding="utf-8")
    return path
