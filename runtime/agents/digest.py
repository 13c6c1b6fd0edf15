"""`digest`: reads everything, by dividing it until a part fits a window, and leaves a hierarchy of memories.

Written with the public API alone. Each leaf summarises as many passages as fit its window and remembers that, made
from these passages; each node above summarises the summaries below it, and its memory is made from theirs. How many
levels and how many children there are follows from the size of the text and the limits of the run, before any call.
A summary that was made of the same sources with the same goal is recalled, and nothing is read again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from treering.events.catalogue import MemoryRef, Ref, SourceSpan
from treering.memory.compaction import extract
from treering.memory.passages import estimate_tokens
from treering.runtime.agents.citing import CITATIONS, citations_of, spans_behind
from treering.runtime.errors import BudgetExceeded, LimitReached, ModelFailed, WindowTooSmall
from treering.runtime.task import Say, Task, TaskLimits

__all__ = ["digest", "digest_part"]

SUMMARY_TOKENS = 60
MEMORIES = 8
SYSTEM = "You shorten texts. Keep names, numbers and rules. Write two plain sentences."
_AROUND_TOKENS = 60
"""The system message, the words around the text, and the template's marks."""
_FILLED = 0.75
"""The part of a window that is planned for: sizes are estimates, and a small model reads short prompts better."""
_SMALLEST_ROOM = 64

Leaf = tuple[SourceSpan, ...]
"""What one call reads: neighbouring passages, one span for each source that they stand in."""


async def digest(task: Task, goal: str, paths: tuple[str, ...] = (), root: str = "") -> dict[str, Any]:
    """A summary of all sources, in the light of `goal`, with the passages nearest to it as citations.

    Raises LimitReached or WindowTooSmall before anything is asked, if the sources are too large for the run's limits.
    """
    for path in paths:
        await task.add_input(path, root or None)
    title = f"Digest: {' '.join(goal.split())}"
    for memory in await task.recall(title, MEMORIES, over="memory"):
        first, _, summary = memory.text.partition("\n")
        if first == title and {span.source for span in spans_behind(task, memory)} == {
            source.source for source in task.sources
        }:
            return await _concluded(task, goal, summary)
    passages = [span for source in task.sources for span in task.passages(source.source)]
    if not passages:
        return {"answer": "There is nothing to read.", "found": False, "citations": []}
    room = _room(task.limits, goal)
    leaves = list(_leaves(task, passages, room))
    fan_out = _fan_out(len(leaves), room, task.limits)
    summary, made_from = await _summarise(task, goal, leaves, fan_out)
    whole = [SourceSpan(source.source, 0, source.characters) for source in task.sources]
    await task.remember(f"{title}\n{summary}", sources=[*made_from, *whole])
    return await _concluded(task, goal, summary)


async def digest_part(task: Task, goal: str, leaves: tuple[Leaf, ...], fan_out: int) -> MemoryRef:
    """The memory of a summary of these leaves, made from their passages or from the memories of their parts."""
    summary, made_from = await _summarise(task, goal, leaves, fan_out)
    return await task.remember(summary, sources=made_from)


async def _summarise(task: Task, goal: str, leaves: Sequence[Leaf], fan_out: int) -> tuple[str, list[Ref]]:
    """A summary of these leaves, by one call or by children and a call; and what it was made from."""
    parts: list[Ref]
    if len(leaves) == 1:
        parts = list(leaves[0])
        made_from: list[Ref] = [span for part in leaves[0] for span in _passages_in(task, part)]
    else:
        groups = _shared_out(leaves, fan_out)
        children = [task.spawn(digest_part, goal, leaves=group, fan_out=fan_out) for group in groups]
        parts = made_from = list(dict.fromkeys(await task.gather(*children)))
    shown: list[str | Ref] = ["Text:\n"]
    for part in parts:
        shown += [part, "\n"]
    asked = Say((*shown, f"\nTask: {goal}\nShort version:"))
    try:
        answer = await task.generate(asked, system=SYSTEM, max_tokens=SUMMARY_TOKENS)
        summary = " ".join(answer.text.split())
    except (BudgetExceeded, ModelFailed):
        summary = ""
    # Without a model or a budget, an extract stands in.
    return summary or extract("\n".join(map(task.text, parts)), SUMMARY_TOKENS * 4), made_from


async def _concluded(task: Task, goal: str, summary: str) -> dict[str, Any]:
    """The answer, with the passages that share most words with goal and summary; the first ones if none does."""
    nearest = await task.recall(f"{goal}\n{summary}", CITATIONS, over="sources")
    spans = [span for hit in nearest for span in spans_behind(task, hit)]
    first = [span for source in task.sources for span in task.passages(source.source)[:CITATIONS]]
    return {"answer": summary, "found": True, "citations": citations_of(task, spans or first)}


# --- how it is divided --------------------------------------------------------------------------------------


def _room(limits: TaskLimits, goal: str) -> int:
    """Tokens of text that one call may read."""
    around = SUMMARY_TOKENS + _AROUND_TOKENS + estimate_tokens(goal)
    room = int((limits.window_tokens - around) * _FILLED)
    if room < _SMALLEST_ROOM:
        needed = around + int(_SMALLEST_ROOM / _FILLED) + 1
        raise WindowTooSmall(
            f"expected a window of at least {needed} tokens to digest with this goal, found {limits.window_tokens}; "
            "use a larger --window"
        )
    return room


def _leaves(task: Task, passages: Sequence[SourceSpan], room: int) -> Iterator[Leaf]:
    """Passages in order, as many at a time as fit, at least one."""
    spans: list[SourceSpan] = []
    used = 0
    for passage in passages:
        tokens = estimate_tokens(task.text(passage)) + 1
        if spans and used + tokens > room:
            yield tuple(spans)
            spans, used = [], 0
        used += tokens
        if spans and spans[-1].source == passage.source:
            spans[-1] = msgspec.structs.replace(spans[-1], end=passage.end)
        else:
            spans.append(passage)
    yield tuple(spans)


def _passages_in(task: Task, part: SourceSpan) -> list[SourceSpan]:
    return [one for one in task.passages(part.source) if part.start <= one.start < part.end]


def _fan_out(leaves: int, room: int, limits: TaskLimits) -> int:
    """Children of each node, such that the tree is as shallow as it can be and keeps to the limits.

    Raises LimitReached, naming the limit and its option, where none does.
    """
    if leaves == 1:
        return 1
    widest = min(limits.children, max(2, room // (SUMMARY_TOKENS + 1)))
    if widest < 2:
        raise _too_large(leaves, "max-children", limits.children, 2)
    levels = 1
    while widest**levels < leaves:
        levels += 1
    if levels > limits.depth:
        raise _too_large(leaves, "max-depth", limits.depth + limits.own_depth, levels + limits.own_depth)
    fan_out = 2
    while fan_out**levels < leaves:
        fan_out += 1
    tasks = _tasks(leaves, fan_out)
    if tasks > limits.tasks:
        raise _too_large(leaves, "max-tasks", limits.tasks, tasks)
    return fan_out


def _too_large(leaves: int, option: str, limit: int, needed: int) -> LimitReached:
    return LimitReached(
        f"expected to divide these sources into {leaves} parts, one for a window, found that --{option} is {limit} "
        f"and {needed} would do; give --{option} {needed}, or a larger --window"
    )


def _shared_out(leaves: Sequence[Leaf], fan_out: int) -> list[Sequence[Leaf]]:
    """At most `fan_out` groups of neighbours, whose sizes differ by one at most."""
    count = min(fan_out, len(leaves))
    return [leaves[len(leaves) * at // count : len(leaves) * (at + 1) // count] for at in range(count)]


def _tasks(leaves: int, fan_out: int) -> int:
    """How many tasks a tree over so many leaves has."""
    if leaves == 1:
        return 1
    count = min(fan_out, leaves)
    small, larger = divmod(leaves, count)
    return 1 + (count - larger) * _tasks(small, fan_out) + (larger and larger * _tasks(small + 1, fan_out))
