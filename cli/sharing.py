"""The commands that take runs out and in: export, import."""

import sys
from contextlib import closing, suppress
from pathlib import Path

import click

from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import note, print_json
from treering.events.errors import StoreError
from treering.events.log import LogStore, find_run
from treering.replays.exporting import export_lines, import_log

__all__ = ["export", "import_"]


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--to", "form", type=click.Choice(["jsonl"]), default="jsonl", show_default=True)
@click.option("--out", default=None, type=click.Path(dir_okay=False, path_type=Path), help="A file. Default: stdout.")
@store_option
def export(name: str, form: str, out: Path | None, store: str | None) -> None:
    """Write RUN's whole log, with its ancestors, as JSON lines that `treering import` takes back byte for byte."""
    with closing(open_store(store)) as opened:
        run = find_run(opened, name).run
        if out is None:
            for line in export_lines(opened, run):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        else:
            write_log(opened, run, out)
            note(f"exported run {run} to {out}")


def write_log(store: LogStore, run: str, out: Path) -> None:
    """Export a run to a file, which is whole or as it was before."""
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            file.writelines(export_lines(store, run))
        part.replace(out)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise StoreError(f"expected to write {out}, found: {error.strerror}; nothing was written") from error


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@store_option
@json_option
def import_(file: Path, store: str | None, as_json: bool) -> None:
    """Take the runs in FILE into the store: all of them, or none if anything does not fit."""
    with closing(open_store(store, create=True)) as opened:
        found = import_log(opened, file)
    if as_json:
        print_json(found)
        return
    click.echo(found.run)
    what = f"{found.events} events of {found.runs} run{'s' if found.runs > 1 else ''}, {found.blobs} texts"
    note(f"imported {what}; {found.added} events are new here")
