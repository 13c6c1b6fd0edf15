"""The demo: three jobs on Python's own language reference, with nothing but the embedded model."""

import tempfile
from contextlib import closing
from pathlib import Path

import click

from treering.cli.opening import open_store, store_option
from treering.cli.printing import note, print_tree
from treering.cli.running import ask_run, config_of, load, start_run
from treering.runtime.runner import open_log

__all__ = ["demo"]

_QUESTION = "What does the nonlocal statement do?"
_NEXT = "What does the global statement do?"
_TOPICS = ("nonlocal", "global", "pass")


@click.command()
@click.option("--model", default="embedded", hidden=True)
@store_option
def demo(model: str, store: str | None) -> None:
    """Answer two questions about Python's reference, shorten a part of it, and show what was recorded."""
    if model == "embedded":
        from treering.runtime.engines.models import pull

        note("fetching the embedded model (98 MB) unless it is here")
        pull(model)
    with closing(open_store(store, create=True)) as opened, tempfile.TemporaryDirectory() as folder:
        engine = load(model)  # once for all three: loading takes seconds
        click.echo(f"\n> treering run {_QUESTION!r} --input pydoc:topics")
        inputs = {"paths": ["pydoc:topics"], "root": ""}
        config = config_of(engine, "reader", model)
        run, first = start_run(opened, engine, config, _QUESTION, inputs, False, keep=True)
        click.echo(f"\n> treering ask {run} {_NEXT!r}")
        second = ask_run(opened, run, _NEXT, False, engine)
        path = _slice(Path(folder))
        click.echo("\n> treering run 'Shorten this' --agent digest --input topics.txt")
        inputs = {"paths": [str(path)], "root": ""}
        other, third = start_run(opened, engine, config_of(engine, "digest", model), "Shorten this", inputs, False)
        click.echo(f"\n> treering show {run}")
        print_tree(open_log(opened, run)[0])
        click.echo("\nTry next:")
        for line in (f"events {run}", f"verify {run}", f"show {other}", f"ask {run} 'What is a lambda?'", "runs"):
            click.echo(f"  treering {line}")
    raise SystemExit(max(first, second, third))


def _slice(folder: Path) -> Path:
    from pydoc_data.topics import topics

    path = folder / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in _TOPICS), encoding="utf-8")
    return path
