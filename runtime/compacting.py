"""Compacting the window of a task: what leaves, what stands in its place, and the receipt.

Owns the way from a window that is too full to a `Compacted` on disk. It never changes the window itself. Invariant:
what is pinned and the goal stay verbatim, and so does the newest exchange where there is room for it.
"""

from typing import TYPE_CHECKING

from treering.events.catalogue import Compacted
from treering.memory.compaction import SUMMARY_SYSTEM, Span, choose_span, extract, measure_loss, summary_prompt
from treering.memory.windows import Window, WindowEntry, render
from treering.runtime.engine import Message

if TYPE_CHECKING:
    from treering.runtime.runner import Runner
    from treering.runtime.task import Task

__all__ = ["SUMMARY_TOKENS", "compact"]

SUMMARY_TOKENS = 32
"""What a summary takes at the least."""
_SHORTEST = 24
_PREFIX = "Earlier, in short: "


async def compact(
    runner: "Runner", task: "Task", window: Window, number: int, target: int, fits: int, reason: str
) -> Compacted | None:
    """Shrink a window to about `target` tokens, and to `fits` if that can be; the receipt, on disk.

    None if there is nothing that may leave.
    """
    goal = f"The goal: {task.goal}\n" if task.goal.strip() else ""
    goal_tokens = runner.count(Message("user", goal)) if goal else 0
    span = choose_span(window.entries, target, fits - SUMMARY_TOKENS - goal_tokens)
    if span is None:
        return None
    kept = window.tokens - span.tokens
    if not _loses(runner, task.goal, window, span) or kept + goal_tokens + SUMMARY_TOKENS > fits:
        goal, goal_tokens = "", 0
    text = "\n".join(f"{item.entry.role}: {_text(runner, item)}" for item in span.entries)
    space = target - kept - goal_tokens
    room = max(_SHORTEST, min(span.tokens // 3, task.window_tokens // 4, max(_SHORTEST, space)))
    prefix = goal + _PREFIX
    summary, by = await runner.summarise(task, number, text, room, SUMMARY_SYSTEM, summary_prompt)
    method = "model"
    while not summary or runner.count(Message("user", prefix + summary)) > room + goal_tokens + 8:
        method = "extractive"
        characters = min(room * 3, len(summary) * 3 // 4 if summary else room * 3)
        if characters < _SHORTEST:
            summary = summary[:_SHORTEST] or text[:_SHORTEST]
            break
        summary = extract(text, characters)
    event = Compacted(
        tuple((item.op, item.index) for item in span.entries),
        prefix + summary,
        runner.count(Message("user", prefix + summary)),
        span.tokens,
        method,
        measure_loss(text, prefix + summary),
        reason,
        by,
    )
    await runner.sequencer.record(event, task.path, number)
    return event


def _text(runner: "Runner", item: WindowEntry) -> str:
    return render(item.entry.parts, runner.text)


def _loses(runner: "Runner", goal: str, window: Window, span: Span) -> bool:
    """Whether the window would no longer say the goal, and did."""
    leaves = {(item.op, item.index) for item in span.entries}
    says = [(item.op, item.index) in leaves for item in window.entries if goal in _text(runner, item)]
    return bool(says) and all(says)
