"""`reader`: answers a question about inputs far larger than its window, and cites where the answer stands.

Written with the public API alone. Sources are indexed without a model call; each passage that recall finds
goes to a child of its own, because a small model reads one passage well and several badly; the answers are
reconciled by scoring. What it concluded is remembered with its provenance. Memories are recalled beside the
passages, which keeps them in use; no answer is made from them yet.
"""

from typing import Any

import msgspec

from treering.events.catalogue import SourceSpan
from treering.memory.recall import Hit
from treering.runtime.agents.answering import SYSTEM, Candidate, answers_nothing, question_prompt, rank
from treering.runtime.errors import BudgetExceeded, ChildFailed, LimitReached
from treering.runtime.task import Say, Task

__all__ = ["Citation", "Conclusion", "read_passage", "reader"]

PASSAGES = 3
"""How many passages are read: with more, the right one is not chosen more often."""
ANSWER_TOKENS = 48


class Citation(msgspec.Struct, frozen=True):
    """Characters `start` to `end` of a source, which are `text`."""

    source: str
    start: int
    end: int
    text: str


class Conclusion(msgspec.Struct, frozen=True):
    """An answer, or `found` False where the input does not answer. At most three citations, best first."""

    answer: str
    found: bool
    citations: tuple[Citation, ...] = ()


async def reader(task: Task, goal: str, paths: tuple[str, ...] = (), root: str = "") -> Conclusion:
    """Answer `goal` from the sources of the run; `paths` are read first, and are its sources from then on."""
    for path in paths:
        await task.add_input(path, root or None)
    passages = [hit for hit in await task.recall(goal, PASSAGES) if hit.tier == "source"]
    children = [task.spawn(read_passage, goal, passage=_span(hit)) for hit in passages]
    results = await task.gather(*children, return_failures=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, ChildFailed | BudgetExceeded | LimitReached):
            raise result
    candidates = [
        Candidate(result["answer"], hit.text, position, hit.score, result["likelihood"])
        for position, (hit, result) in enumerate(zip(passages, results, strict=True))
        if isinstance(result, dict)
    ]
    if passages and not candidates:
        raise next(result for result in results if isinstance(result, Exception))
    ranked = rank(candidates, goal)
    if not ranked:
        return Conclusion("The input does not answer this.", False)
    cited = [passages[candidate.position] for candidate in ranked]
    await task.remember(f"{goal} {ranked[0].answer}", sources=cited[:1])
    return Conclusion(ranked[0].answer, True, tuple(_citation(hit) for hit in cited[:PASSAGES]))


async def read_passage(task: Task, goal: str, passage: SourceSpan) -> dict[str, Any]:
    """What one passage says about `goal`, and how likely a reader of it would ask that."""
    before, after = question_prompt(goal)
    asked = Say((before, passage, after))
    likelihood = await task.score(Say((before, passage, "\n\nQuestion: ")), goal, system=SYSTEM)
    answer = await task.generate(asked, system=SYSTEM, max_tokens=ANSWER_TOKENS, stop=("\n\n",))
    text = " ".join(answer.text.split())
    return {"answer": "" if answers_nothing(text) else text, "likelihood": likelihood}


def _span(hit: Hit) -> SourceSpan:
    assert isinstance(hit.ref, SourceSpan)
    return hit.ref


def _citation(hit: Hit) -> Citation:
    span = _span(hit)
    return Citation(hit.name, span.start, span.end, hit.text)
