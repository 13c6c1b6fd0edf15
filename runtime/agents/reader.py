"""`reader`: answers a question about inputs far larger than its window, and cites where the answer stands.

Written with the public API alone. What it concluded before is recalled first: a memory that answers the question
is the answer, and no text is read again. Otherwise sources are searched without a model call, and each excerpt
that speaks of the question goes to a child of its own, because a small model reads one passage well and several
badly. A child weighs the answers that stand in its excerpt by how likely a model finds the question given each
(an engine that cannot score writes an answer instead); the best of all is the answer. It is remembered with its
provenance.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from treering.events.catalogue import MemoryRef, Ref, SourceSpan
from treering.memory.recall import Hit
from treering.runtime.agents.answering import (
    Plan,
    choose,
    concluded,
    conclusion,
    plan,
    replied,
    sentence_of,
)
from treering.runtime.agents.candidates import Candidate
from treering.runtime.agents.citing import Citation, citations_of, spans_behind
from treering.runtime.agents.excerpts import Excerpt, Text
from treering.runtime.errors import BudgetExceeded, ChildFailed, LimitReached
from treering.runtime.task import Say, Task

__all__ = ["Conclusion", "read_excerpt", "reader"]

MEMORIES = 3
PASSAGES = 20
"""How many passages are searched for excerpts, without a model."""
REPLY_TOKENS = 48
NOTHING = "The input does not answer this."
ASKER = "You write the question that a text answers."
ANSWERER = (
    "You answer questions from a text. Answer in one short sentence, with words from the text. If the text does "
    "not answer, say: not in the text"
)


_EXAMPLES = tuple(
    say
    for text, answer, question in (
        (
            "Harbour\nThe keeper of the lighthouse, Tomas Varga, kept a parrot. The light was lit with whale oil until "
            "1871.",
            "Tomas Varga",
            "Who looked after the lighthouse?",
        ),
        (
            'Commands\nlist [directory]\nShow the files of the directory. The option "--all" also shows hidden files.',
            "--all",
            "Which option makes hidden files visible?",
        ),
        (
            'Engine checks\nBefore starting, press the primer. If the fuel is missing, a "FuelError" is reported.',
            "FuelError",
            "Which error is reported when there is no fuel?",
        ),
    )
    for say in (Say((f"Text:\n{text}\n\nAnswer: {answer}",)), Say((question,), "assistant"))
)
"""What is asked of a small model is shown to it: without examples its scores chose no better than none at all."""


class Conclusion(msgspec.Struct, frozen=True):
    """An answer, or `found` False where the input does not answer. At most three citations, best first.

    Where nothing answers, they are the passages that come nearest.
    """

    answer: str
    found: bool
    citations: tuple[Citation, ...] = ()


async def reader(task: Task, goal: str, paths: tuple[str, ...] = (), root: str = "") -> Conclusion:
    """Answer `goal` from the sources of the run; `paths` are read first, and are its sources from then on."""
    for path in paths:
        await task.add_input(path, root or None)
    memories = await task.recall(goal, MEMORIES, over="memory", access=False)
    for memory in memories:
        if (answer := concluded(goal, memory.text)) is not None:
            await task.use(memory)
            return Conclusion(answer, True, citations_of(task, spans_behind(task, memory)))
    hits = [*memories, *await task.recall(goal, PASSAGES, over="sources")]
    plans = plan(goal, [Text(_said(hit), hit.heading, hit.score) for hit in hits])
    choice = choose(await _read(task, goal, hits, plans))
    places = [*([choice.answer.of] if choice.answer else []), *(one.excerpt.of for one in plans)]
    spans = [span for of in dict.fromkeys(places) for span in spans_behind(task, hits[of])]
    if choice.answer is None:
        return Conclusion(NOTHING, False, citations_of(task, spans))
    best = hits[choice.answer.of]
    if isinstance(best.ref, MemoryRef):
        await task.use(best)
    sentence = sentence_of(_said(best), choice.answer.answer, goal)
    await task.remember(conclusion(goal, choice.answer.answer, sentence), sources=[best])
    return Conclusion(choice.answer.answer, True, citations_of(task, spans))


async def _read(task: Task, goal: str, hits: Sequence[Hit], plans: Sequence[Plan]) -> list[Candidate]:
    """The candidates of all excerpts, as the children weighed them. Raises if no child could."""
    asked = [one for one in plans if one.candidates]
    children = [
        task.spawn(
            read_excerpt,
            goal,
            heading=one.excerpt.heading,
            parts=_parts(hits[one.excerpt.of], one.excerpt),
            answers=[candidate.answer for candidate in one.candidates],
        )
        for one in asked
    ]
    results = await task.gather(*children, return_failures=True)
    failures = [result for result in results if isinstance(result, Exception)]
    for failure in failures:
        if not isinstance(failure, ChildFailed | BudgetExceeded | LimitReached):
            raise failure
    if failures and len(failures) == len(results):
        raise failures[0]
    found: list[Candidate] = []
    for one, result in zip(asked, results, strict=True):
        if isinstance(result, dict):
            found += _weighed(goal, one, result)
    return found


def _weighed(goal: str, one: Plan, result: dict[str, Any]) -> Iterable[Candidate]:
    if result["reply"] is None:
        for candidate, channel in zip(one.candidates, result["channels"], strict=True):
            yield msgspec.structs.replace(candidate, channel=channel)
    elif (answer := replied(goal, one.excerpt, result["reply"])) is not None:
        yield answer


async def read_excerpt(
    task: Task, goal: str, parts: tuple[SourceSpan | MemoryRef, ...], answers: tuple[str, ...], heading: str = ""
) -> dict[str, Any]:
    """How likely `goal` is asked for each of `answers`, given an excerpt; or an answer, if the engine cannot tell."""
    shown: list[str | SourceSpan | MemoryRef] = [f"Text:\n{heading}\n" if heading else "Text:\n"]
    for part in parts:
        shown += [part, "\n"]
    if task.can_score:
        scores = [
            task.score([*_EXAMPLES, Say((*shown, f"\nAnswer: {answer}"))], goal, system=ASKER) for answer in answers
        ]
        channels = await task.gather(*scores)
        if all(channel is not None for channel in channels):
            return {"channels": channels, "reply": None}
    asked = Say((*shown, f"\nQuestion: {goal}"))
    answer = await task.generate(asked, system=ANSWERER, max_tokens=REPLY_TOKENS, stop=("\n\n",))
    return {"channels": [], "reply": answer.text}


def _said(hit: Hit) -> str:
    """The text of a hit; of a conclusion without the question it was made for, which would speak for itself."""
    return hit.text if isinstance(hit.ref, SourceSpan) else hit.text.partition("\n")[2] or hit.text


def _parts(hit: Hit, excerpt: Excerpt) -> list[Ref]:
    """The excerpt as references: what a child reads is never copied into the log."""
    if not isinstance(hit.ref, SourceSpan):
        return [hit.ref]
    source, at = hit.ref.source, hit.ref.start
    spans = [SourceSpan(source, at + excerpt.start, at + excerpt.end)]
    if excerpt.lead_end > excerpt.lead_start:
        spans.insert(0, SourceSpan(source, at + excerpt.lead_start, at + excerpt.lead_end))
    return [*spans]
