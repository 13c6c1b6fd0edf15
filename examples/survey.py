"""What do the three passages that speak most of a subject say about it? A child reads each.

`treering run "slices" --input pydoc:topics --agent examples.survey:survey`
"""

from treering.events.catalogue import SourceSpan
from treering.runtime.task import Say, Task


async def survey(task: Task, goal: str, paths: tuple[str, ...] = (), root: str = "") -> list[str]:
    """One sentence for each passage."""
    for path in paths:
        await task.add_input(path, root or None)  # read once, into the log
    hits = await task.recall(goal, 3, over="sources")  # by its words, without a model
    children = [task.spawn(read, goal, passage=hit.ref) for hit in hits]
    said: list[str] = await task.gather(*children)
    for hit, sentence in zip(hits, said, strict=True):
        await task.remember(sentence, sources=[hit])
    return said


async def read(task: Task, goal: str, passage: SourceSpan) -> str:
    """What one passage says. The prompt points at the passage, so that the log does not hold it twice."""
    prompt = Say(("Text:\n", passage, f"\n\nIn one short sentence, what does it say about {goal}?"))
    return (await task.generate(prompt, max_tokens=40)).text
