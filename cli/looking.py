"""The commands that look: runs, show, events, verify. They change nothing and need no model."""

import contextlib
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click
import msgspec

from treering.cli.describing import describe
from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import (
    answer_of,
    costs_of,
    event_object,
    note,
    one_line,
    plural,
    print_json,
    print_tree,
    seconds_of,
    visible,
)
from treering.events.catalogue import EVENT_TYPES
from treering.events.codec import Stored, decode
from treering.events.errors import UsageError
from treering.events.log import LogStore, find_run
from treering.memory.queues import Sized
from treering.replays.listing import elapsed_s, standing, summarise

if TYPE_CHECKING:
    from treering.runtime.state import RunState

__all__ = ["events", "runs", "show", "verify"]

_FOLLOW_S = 0.3


@click.command()
@store_option
@json_option
def runs(store: str | None, as_json: bool) -> None:
    """All runs, oldest first."""
    with closing(open_store(store)) as opened:
        rows = opened.runs()
        if not rows:
            note("no runs yet; treering run begins one")
        for row in rows:
            found = summarise(opened, row)
            if as_json:
                print_json(
                    {
                        "run": row.run,
                        "status": found.status,
                        "goal": found.goal,
                        "events": found.events,
                        "created": row.created,
                        "parent": row.parent,
                        "cut": row.cut,
                    }
                )
            else:
                origin = f"  fork of {row.parent} at {row.cut}" if row.parent else ""
                click.echo(
                    f"{row.run}  {found.status:<11}  {found.events:>6} events  {one_line(found.goal, 50)}{origin}"
                )


@click.command(short_help="The tree, memory and costs of a run at any event.")
@click.argument("name", metavar="RUN")
@click.option("--at", type=click.IntRange(min=1), default=None, help="After this event; default: the last.")
@click.option("--call", type=click.IntRange(min=1), default=None, help="What the model call of this event saw.")
@store_option
@json_option
def show(name: str, at: int | None, call: int | None, store: str | None, as_json: bool) -> None:
    """The tree, memory and costs of a run at any event; or the exact prompt of a model call."""
    from treering.replays.showing import state_at

    with closing(open_store(store)) as opened:
        run = find_run(opened, name).run
        if call is not None:
            _show_call(opened, run, call, as_json)
            return
        state = state_at(opened, run, at)
        status = standing(opened, run, state.status) if at is None and not state.config.origin else state.status
        found = {**_state_object(run, state, elapsed_s(opened, run, at)), "status": status}
        if as_json:
            print_json(found)
            return
        click.echo(f"run {run} at event {state.seq}: {status}, agent {state.config.agent}")
        print_tree(state)
        click.echo(
            f"memory: {found['memories']['hot']} hot, {found['memories']['cold']} cold; "
            f"{plural(len(state.sources), 'source')}"
        )
        if pinned := found["memories"]["pinned_tokens"]:
            policy = state.memory.policy
            over = (
                f", over the {policy.size} of the policy"
                if isinstance(policy, Sized) and pinned > policy.size
                else ""
            )
            click.echo(
                f"pinned: {pinned} of {found['memories']['hot_tokens']} hot tokens{over}; no policy counts them"
            )
        tokens = found["tokens"]
        reused = f", {plural(found['reused'], 'reply', 'replies')} reused" if found["reused"] else ""
        click.echo(
            f"costs: {tokens['prompt']} prompt tokens ({tokens['cached']} cached), {tokens['generated']} generated, "
            f"{seconds_of(found)}{reused}"
        )
        if found["answer"] is not None:
            click.echo(f"answer: {visible(str(found['answer']))}")
        if status == "interrupted":
            note(f"go on with: treering resume {run}")


def _state_object(run: str, state: "RunState", seconds: float) -> dict[str, Any]:
    result = state.tasks[state.roots[-1]].result if state.roots else ""
    answer, _, citations = answer_of(msgspec.json.decode(result) if result else None)
    hot = sum(state.memory.is_hot(id) for id in state.memory.memories)
    hot_tokens, pinned_tokens = state.memory.resident()
    return {
        "run": run,
        "status": state.status,
        "answer": answer,
        "citations": citations,
        "events": state.seq,
        "tasks": len(state.tasks),
        "tree": [
            {
                "path": task.path,
                "agent": task.agent,
                "goal": task.goal,
                "status": task.status,
                "failure": task.failure,
                "prompt": task.prompt_tokens,
                "generated": task.generated_tokens,
                "window": 0 if task.window is None else task.window.tokens,
            }
            for task in state.tasks.values()
        ],
        "sources": [source.name for source in state.sources.values()],
        "memories": {
            "hot": hot,
            "cold": len(state.memory.memories) - hot,
            "hot_tokens": hot_tokens,
            "pinned_tokens": pinned_tokens,
        },
        **costs_of(state, seconds),
    }


def _show_call(store: LogStore, run: str, seq: int, as_json: bool) -> None:
    from treering.replays.showing import prompt_of

    prompt = prompt_of(store, run, seq)
    if as_json:
        print_json(prompt)
        return
    click.echo(
        f"call {prompt.seq}, task {prompt.task} op {prompt.op}: {prompt.tokens} tokens, at most {prompt.max_tokens} more"
    )
    for message in prompt.messages:
        click.echo(f"--- {message.role}\n{visible(message.text)}")
    if prompt.continuation is not None:
        click.echo(f"--- scored\n{prompt.continuation}")
    elif prompt.reply is not None:
        click.echo(f"--- reply (event {prompt.reply_seq})\n{visible(prompt.reply)}")


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--task", default=None, help="Only of this task, such as 1.2.")
@click.option("--kind", "kinds", multiple=True, help="Only of this kind. May repeat.")
@click.option("--follow", is_flag=True, help="Go on as events come.")
@store_option
@json_option
def events(
    name: str, task: str | None, kinds: tuple[str, ...], follow: bool, store: str | None, as_json: bool
) -> None:
    """The events of a run in order, one a line."""
    unknown = [kind for kind in kinds if kind not in EVENT_TYPES]
    if unknown:
        raise UsageError(f"expected a kind of event ({', '.join(EVENT_TYPES)}), found {unknown[0]!r}")
    with closing(open_store(store)) as opened:
        run = find_run(opened, name).run
        if task is not None and not follow and not any(opened.read(run, task=task)):
            raise UsageError(f"expected a task of run {run}, found no {task!r}; treering show {run} lists them")
        after = 0
        # Ctrl-C is how following ends, and no failure.
        with contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext():
            while True:
                until, _ = opened.head(run)
                for record in opened.read(run, after=after, until=until, task=task, kinds=kinds or None):
                    _print_event(decode(record), as_json)
                after = until
                if not follow:
                    return
                time.sleep(_FOLLOW_S)


def _print_event(stored: Stored, as_json: bool) -> None:
    header = stored.header
    if as_json:
        print_json(event_object(header, stored.event))
    else:
        op = str(header.op or "")
        click.echo(f"{header.seq:>5} {header.task or '-':<8} {op:>3}  {header.kind:<15} {describe(stored.event)}")


@click.command(short_help="Check a run's log.")
@click.argument("name", metavar="RUN")
@store_option
@json_option
def verify(name: str, store: str | None, as_json: bool) -> None:
    """Check that a run's log is what was written and follows from itself."""
    from treering.replays.verifying import verify as verify_run

    with closing(open_store(store)) as opened:
        found = verify_run(opened, find_run(opened, name).run)
    if as_json:
        print_json({"status": "ok", **msgspec.to_builtins(found)})
        return
    click.echo(
        f"ok: run {found.run}, {found.events} events in {found.segments} segments, {found.derived} derived events "
        f"computed again, {found.sources} sources; digest {found.digest[:16]}"
    )
