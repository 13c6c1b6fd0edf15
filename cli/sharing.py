"""The commands that take runs out and in: export, import."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import click

from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import note, print_json
from treering.events.errors import StoreError, UsageError
from treering.events.log import LogStore, find_run

__all__ = ["export", "import_", "write_lines"]


@click.command(short_help="Write RUN's log to a file.")
@click.argument("name", metavar="RUN")
@click.option(
    "--to", "form", type=click.Choice(["jsonl", "otel"]), default="jsonl", show_default=True, help="What to write."
)
@click.option("--out", default=None, type=click.Path(dir_okay=False, path_type=Path), help="A file. Default: stdout.")
@click.option("--endpoint", default=None, help="An OTLP/HTTP endpoint for --to otel: http://localhost:4318/v1/traces")
@click.option("--texts", is_flag=True, help="With --to otel: prompts, replies and arguments too.")
@store_option
def export(name: str, form: str, out: Path | None, endpoint: str | None, texts: bool, store: str | None) -> None:
    """Write RUN's log to a file: as JSON lines, or as OpenTelemetry spans.

    JSON lines hold the whole log with its ancestors; `treering import` takes it back byte for byte. Spans follow
    the GenAI semantic conventions; in a file they are one JSON object a line.
    """
    from treering.replays.exporting import export_lines
    from treering.replays.tracing import send_spans, spans_of
    from treering.runtime.runner import CODE_VERSION

    if form == "jsonl" and (endpoint or texts):
        raise UsageError("expected --endpoint and --texts with --to otel only")
    if endpoint and out:
        raise UsageError("expected --endpoint or --out, found both")
    with closing(open_store(store)) as opened:
        run = find_run(opened, name).run
        if endpoint:
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # our own line says what failed
            sent = send_spans(spans_of(opened, run, texts), endpoint, CODE_VERSION)
            note(f"sent {sent} spans of run {run} to {endpoint}")
            return
        lines = export_lines(opened, run) if form == "jsonl" else _span_lines(opened, run, texts)
        if out is None:
            for line in lines:
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        else:
            write_lines(lines, out)
            note(f"exported run {run} to {out}")


def _span_lines(store: LogStore, run: str, texts: bool) -> Iterator[bytes]:
    from treering.replays.tracing import spans_of, to_readable
    from treering.runtime.runner import CODE_VERSION

    convert = to_readable(CODE_VERSION)
    for span in spans_of(store, run, texts):
        yield convert(span).to_json(indent=None).encode() + b"\n"


def write_lines(lines: Iterable[bytes], out: Path) -> None:
    """Write a file, which is whole or as it was before."""
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            file.writelines(lines)
        part.replace(out)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise StoreError(f"expected to write {out}, found: {error.strerror}; nothing was written") from error


@click.command("import", short_help="Take the run in FILE into the store.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@store_option
@json_option
def import_(file: Path, store: str | None, as_json: bool) -> None:
    """Take the run in FILE into the store: all of it, or nothing if anything does not fit.

    FILE is an exported log, a Claude Code session (JSON lines) or an Inspect log (.eval or JSON). Runs of others can
    be shown, searched, compared and exported, not resumed.
    """
    from treering.replays.importing import import_file

    with closing(open_store(store, create=True)) as opened:
        found = import_file(opened, file)
    if as_json:
        print_json(found)
        return
    click.echo(found.run)
    what = f"{found.events} events of {found.runs} run{'s' if found.runs > 1 else ''}, {found.blobs} texts"
    note(f"imported {what}; {found.added} events are new here")
