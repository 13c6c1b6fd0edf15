"""Printing: results for people and for programs.

Owns the words in which runs, events and outcomes are shown. Results go to stdout; it never writes to a log.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from treering.events.catalogue import Event, Header
from treering.events.codec import to_json

if TYPE_CHECKING:
    from treering.runtime.runner import Outcome
    from treering.runtime.state import RunState

__all__ = [
    "answer_of",
    "costs_of",
    "event_object",
    "is_terminal",
    "note",
    "one_line",
    "plural",
    "preview",
    "print_json",
    "print_outcome",
    "print_tree",
    "result_object",
    "seconds_of",
    "short_name",
    "visible",
]

_SHOWN_TASKS = 60
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)  # not click's echo, which writes past a live picture into its middle


def print_json(value: Any) -> None:
    """One JSON value on stdout, in one line."""
    click.echo(to_json(value).decode())


def visible(text: str) -> str:
    """`text` without what would steer a terminal: a model, or a file, may say anything."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, width: int = 90) -> str:
    """`text` without line ends, cut to `width`."""
    flat = " ".join(visible(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def preview(text: str, width: int = 90) -> str:
    """`text` in one line, without the lines that only underline or frame others."""
    lines = [line for line in text.splitlines() if any(letter.isalnum() for letter in line)]
    return one_line("\n".join(lines) or text, width)


def plural(count: int, one: str, many: str = "") -> str:
    """`count` with its noun: `1 task`, `2 tasks`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def short_name(agent: str) -> str:
    """An agent without the module that it comes from."""
    return agent.rpartition(":")[2]


def result_object(
    run: str, state: "RunState", outcome: "Outcome | None", unreached: Sequence[int] = (), seconds: float = 0.0
) -> dict[str, Any]:
    """A run and how its last question ended, with keys that stay. `unreached`: the edits of a fork not applied.

    `seconds` is how long it took, as people count.
    """
    result = outcome.result if outcome is not None else None
    answer, found, citations = answer_of(result)
    return {
        "run": run,
        "status": outcome.status if outcome is not None else state.status,
        "answer": answer,
        "found": found,
        "citations": citations,
        "error": outcome.error if outcome is not None else "",
        "events": state.seq,
        "tasks": len(state.tasks),
        **costs_of(state, seconds),
        "unreached": list(unreached),
    }


def answer_of(result: Any) -> tuple[Any, bool | None, list[Any]]:
    """What an agent's result says: the answer, whether one was found, the citations. Any other JSON is the answer."""
    if not isinstance(result, dict) or "answer" not in result:
        return result, None, []
    return result["answer"], result.get("found"), list(result.get("citations", ()))


def costs_of(state: "RunState", seconds: float) -> dict[str, Any]:
    """What a run cost so far, with keys that stay: `seconds` as people count, `model_seconds` added up over calls."""
    totals = state.totals
    return {
        "tokens": {"prompt": totals.prompt, "cached": totals.cached, "generated": totals.generated},
        "seconds": round(seconds, 3),
        "model_seconds": round(totals.seconds, 3),
        "reused": totals.reused,
    }


def print_outcome(found: dict[str, Any], as_json: bool) -> int:
    """An answer, its citations and what it cost; the exit code."""
    _print_result(found) if not as_json else print_json(found)
    if found.get("advice"):
        note(f"to go on with more: {found['advice']}")
    for seq in found["unreached"]:
        note(f"the edit of event {seq} was never reached: the fork took another way")
    return 0 if found["status"] == "finished" else 1


def _print_result(found: dict[str, Any]) -> None:
    answer = found["answer"]
    if found["status"] != "finished":
        note(visible(f"{found['status']}: {found['error'] or 'no answer'}"))
    elif isinstance(answer, str):
        click.echo(visible(answer))
    else:
        click.echo(to_json(answer).decode())
    if found["found"] is False and found["citations"]:
        click.echo("nearest passages:")
    for number, cited in enumerate(found["citations"], start=1):
        place = f"  [{number}] {one_line(cited['source'])}[{cited['start']}:{cited['end']}]  "
        width = shutil.get_terminal_size().columns - len(place) if sys.stdout.isatty() else 90
        click.echo(place + preview(cited["text"], max(30, width)))
    tokens = found["tokens"]
    note(
        f"run {found['run']}: {plural(found['events'], 'event')}, {plural(found['tasks'], 'task')}, "
        f"{tokens['prompt']} prompt tokens ({tokens['cached']} cached), {tokens['generated']} generated, "
        f"{seconds_of(found)}"
    )


def seconds_of(found: dict[str, Any]) -> str:
    """How long it took, and how long in the model: that is more where calls ran side by side."""
    return f"{found['seconds']:.1f} s ({found['model_seconds']:.1f} s in the model, summed over parallel calls)"


def print_tree(state: "RunState") -> None:
    """The tasks of a run, one a line, children under their parents.

    Of very many, the branches that hold a task which did not finish come first, so that they are among those shown.
    """
    from treering.runtime.state import parent_path

    shown = 0
    children: dict[str, list[str]] = {}
    for path in state.tasks:
        children.setdefault(parent_path(path), []).append(path)
    if len(state.tasks) > _SHOWN_TASKS:
        telling: set[str] = set()
        for path, task in state.tasks.items():
            while task.status != "finished" and path and path not in telling:
                telling.add(path)
                path = parent_path(path)
        for below in children.values():
            below.sort(key=lambda path: path not in telling)

    waiting = [(path, "") for path in reversed(children.get("", []))]
    while waiting:
        path, indent = waiting.pop()
        if shown == _SHOWN_TASKS:
            click.echo(f"… and {len(state.tasks) - shown} more")
            return
        shown += 1
        task = state.tasks[path]
        why = f": {one_line(task.failure, 100)}" if task.failure else ""
        tokens = f"  {task.prompt_tokens}+{task.generated_tokens} tokens" if task.prompt_tokens else ""
        above = state.tasks.get(task.parent)
        goal = f"  {one_line(task.goal, 60)}" if above is None or above.goal != task.goal else ""
        click.echo(f"{indent}{path} {short_name(task.agent)}  {task.status}{why}{tokens}{goal}")
        waiting += [(child, indent + "  ") for child in reversed(children.get(path, []))]


def event_object(header: Header, event: Event | None) -> dict[str, Any]:
    """One event, with keys that stay. `body` is null where it was destroyed."""
    body = None if event is None else msgspec.Raw(to_json(event))
    return {
        "seq": header.seq,
        "task": header.task,
        "op": header.op,
        "kind": header.kind,
        "at": header.at,
        "body": body,
    }


def is_terminal() -> bool:
    """Whether people watch stderr."""
    return sys.stderr.isatty()
