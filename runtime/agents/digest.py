"""`digest`: reads everything, by dividing it until a part fits a window, and leaves a hierarchy of memories.

Written with the public API alone. Each leaf summarises a few passages and remembers that with its provenance;
each node above summarises the summaries below it, so that the root's answer rests on all of the text.
"""

from typing import Any

from treering.events.catalogue import SourceSpan
from treering.memory.compaction import extract
from treering.runtime.errors import BudgetExceeded, ModelFailed
from treering.runtime.task import Say, Task

__all__ = ["digest", "digest_part"]

FAN_OUT = 4
LEAF_PASSAGES = 2
SUMMARY_TOKENS = 60
SYSTEM = "You shorten texts. Keep names, numbers and rules. Write two plain sentences."


async def digest(task: Task, goal: str, paths: tuple[str, ...] = (), root: str = "") -> dict[str, Any]:
    """A summary of all sources, in the light of `goal`, with the parts it was made from as citations."""
    for path in paths:
        await task.add_input(path, root or None)
    passages = [span for source in task.sources for span in task.passages(source.source)]
    if not passages:
        return {"answer": "There is nothing to read.", "found": False, "citations": []}
    summary = await digest_part(task, goal, tuple(passages))
    names = {source.source: source.name for source in task.sources}
    citations = [
        {"source": names[span.source], "start": span.start, "end": span.end, "text": task.text(span)}
        for span in passages[:3]
    ]
    return {"answer": summary, "found": True, "citations": citations}


async def digest_part(task: Task, goal: str, passages: tuple[SourceSpan, ...]) -> str:
    """A summary of these passages: by one call if they are few, else by children for parts of them."""
    if len(passages) <= LEAF_PASSAGES:
        parts: list[str | SourceSpan] = ["Text:\n"]
        for span in passages:
            parts += [span, "\n"]
        text = "\n".join(task.text(span) for span in passages)
        return await _summarise(task, Say((*parts, "\nShort version:")), text, passages)
    size = -(-len(passages) // FAN_OUT)
    groups = [
        passages[at : at + max(size, LEAF_PASSAGES)] for at in range(0, len(passages), max(size, LEAF_PASSAGES))
    ]
    children = [task.spawn(digest_part, goal, passages=group) for group in groups]
    summaries: list[str] = await task.gather(*children)
    text = "\n".join(summaries)
    return await _summarise(task, Say((f"Text:\n{text}\n\nShort version:",)), text, passages)


async def _summarise(task: Task, asked: Say, text: str, passages: tuple[SourceSpan, ...]) -> str:
    """Ask for a summary and remember it; without a model or a budget, an extract stands in."""
    try:
        answer = await task.generate(asked, system=SYSTEM, max_tokens=SUMMARY_TOKENS)
        summary = " ".join(answer.text.split())
    except (BudgetExceeded, ModelFailed):
        summary = extract(text, SUMMARY_TOKENS * 4)
    await task.remember(summary, sources=passages[:8])
    return summary
