"""Writes `docs/cli.md` from the commands themselves: `make docs`. A test compares the two."""

from collections.abc import Iterator
from pathlib import Path

import click

from treering.cli.main import cli

__all__ = ["PAGE", "commands", "page"]

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """# The commands

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 the job failed, 2 bad usage, 3 a log that does not
hold or a path that differs from it. With `--json`, results are one object, or one a line: `tasks` counts tasks,
`seconds` is time as people count, `model_seconds` adds up calls that ran side by side. This page is written by
`make docs`.

Environment: `TREERING_STORE` (the log's file), `OPENAI_API_KEY` or `TREERING_API_KEY` (the key of an `openai:` model),
`TREERING_CALLS_PER_MINUTE` (how fast such calls may begin), `TREERING_TOKENIZER` (a folder with the model's
`tokenizer.json`, or `server` to let a llama.cpp server count; else tokens are estimated from above), `TREERING_DEBUG`
(a traceback for an unexpected error).
"""


def commands(
    command: click.Command = cli, name: str = "treering", parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A context for each command and each command below it, in the order of the help."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from commands(found, below, context)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    parts += [f"## {each.command_path}\n\n```text\n{each.get_help().strip()}\n```\n" for each in commands()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
