"""How well `reader` answers: questions over Python's language reference, beside what the same model does alone.

    python -m benchmarks.quality --split fresh --arms closed,one,three,selection,reader --limit 10
    python -m benchmarks.quality --questions benchmarks/questions_prose.json --input TPJ13.pod

The questions are in questions.json, each with the accepted answers as regular expressions over normalised text. The
reader was tuned on `tune`. `held_out` was set aside before; its authors had read all of the questions, though, and
wrote the reader's rules. So `fresh` was written afterwards by someone who had seen neither questions nor rules, and
questions_prose.json by the same on a text that has nothing to do with Python. `topic` is the topic of Python 3.11's
`pydoc_data.topics` in which an accepted answer stands; the unanswerable ones ask for what the text does not hold.
Needs the embedded model; about 10 s a question on two cores for `reader`.

`reader` is the agent itself, run on a log: each question is a fork of one run that holds the reference, so that
none remembers another's answer. The other arms ask the engine once: without a text, with the passage that recall
finds first, with the first three. `selection` is what `reader` would say if no model weighed its candidates.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.bootstrap import lead
from treering.events.catalogue import RunConfig
from treering.events.in_memory import InMemoryStore
from treering.runtime.agents.answering import answers_nothing, choose, plan
from treering.runtime.agents.excerpts import Text
from treering.runtime.agents.reader import PASSAGES, Conclusion
from treering.runtime.engine import Engine, Message, Request
from treering.runtime.runner import Runner, create_run, fork_run
from treering.runtime.task import Task
from treering.tools.inputs import PYTHON_REFERENCE

__all__ = ["Question", "is_right", "load_questions", "normalise"]

BASELINE_TOKENS = 48
QUESTIONS = Path(__file__).parent / "questions.json"
SYSTEM = "You answer questions. Answer in one short sentence."
SYSTEM_TEXT = "You answer questions from a text. Answer in one short sentence, with words from the text."


# -- questions and grading -----------------------------------------------------------------------------------


class Question(msgspec.Struct, frozen=True):
    """`answers` is empty where the input does not answer."""

    id: str
    split: str
    question: str
    answers: tuple[str, ...] = ()
    topic: str = ""


class Outcome(msgspec.Struct):
    """What an arm said: `answer` None is a refusal; `cited` are texts of passages, best first."""

    answer: str | None
    cited: list[str] = []
    seconds: float = 0.0
    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


def load_questions(split: str, limit: int | None = None, path: Path = QUESTIONS) -> list[Question]:
    """Questions of one split (or `all`): the answerable ones, then the others, at most `limit` of each."""
    raw = json.loads(path.read_text("utf-8"))
    found: list[Question] = []
    for kind in ("answerable", "unanswerable"):
        questions = msgspec.convert(raw[kind], list[Question])
        found += [question for question in questions if split in ("all", question.split)][:limit]
    return found


def normalise(text: str) -> str:
    """Lower case, one space between words, without double quotes, backquotes and asterisks."""
    text = re.sub(r"[“”\"`*]", " ", text.replace("’", "'").replace("‘", "'"))
    return " ".join(text.split()).lower()


def is_right(question: Question, reply: str | None) -> bool:
    """Whether an accepted answer stands in the reply."""
    return reply is not None and any(re.search(answer, normalise(reply)) for answer in question.answers)


# -- the arms ------------------------------------------------------------------------------------------------


class Bench:
    """An engine, and a run whose log holds the text."""

    def __init__(self, engine: Engine) -> None:
        info = engine.info
        self.engine = engine
        self.store = InMemoryStore()
        self.config = RunConfig(
            "reader", weights=info.weights, template=info.template, overhead_tokens=info.overhead_tokens
        )
        self.run = create_run(self.store, msgspec.structs.replace(self.config, agent="found"))

    async def read(self, path: str) -> None:
        """Read the text into the log."""
        async with Runner(self.store, self.run, self.engine, agents={"found": _found}) as runner:
            await runner.ask("read", {"path": path})

    async def passages(self, question: str, k: int) -> list[Text]:
        """The `k` best passages, by the recall that agents use."""
        async with Runner(self.store, self._fork(), self.engine, agents={"found": _found}) as runner:
            outcome = await runner.ask(question, {"k": k}, "found")
        return msgspec.convert(outcome.result, list[Text])

    async def reader(self, question: str) -> Outcome:
        """What the agent says."""
        run = self._fork()
        async with Runner(self.store, run, self.engine) as runner:
            ended = await runner.ask(question)
            tasks = runner.state.tasks.values()
            prompt = sum(task.prompt_tokens for task in tasks)
            generated = sum(task.generated_tokens for task in tasks)
        if ended.status != "finished":
            raise SystemExit(f"reader failed on {question!r}: {ended.error}")
        calls = sum(1 for _ in self.store.read(run, kinds=["ModelCalled"]))
        said = msgspec.convert(ended.result, Conclusion)
        cited = [citation.text for citation in said.citations]
        return Outcome(
            said.answer if said.found else None, cited, calls=calls, prompt_tokens=prompt, generated_tokens=generated
        )

    async def alone(self, question: str, k: int) -> Outcome:
        """One call with the first `k` passages."""
        found = await self.passages(question, k) if k else []
        text = "\n\n".join(f"{one.heading}\n{one.text}" for one in found)
        asked = f"Text:\n{text}\n\nQuestion: {question}\nAnswer in one short sentence." if text else question
        messages = (Message("system", SYSTEM_TEXT if text else SYSTEM), Message("user", asked))
        reply = await self.engine.generate(Request(messages, BASELINE_TOKENS))
        cited = [one.text for one in found]
        return Outcome(reply.text, cited, 0.0, 1, reply.prompt_tokens, reply.generated_tokens)

    async def selection(self, question: str) -> Outcome:
        """The first of the reader's candidates, by what speaks for them without a model."""
        found = await self.passages(question, PASSAGES)
        plans = plan(question, found)
        choice = choose(candidate for one in plans for candidate in one.candidates)
        if choice.answer is None:
            return Outcome(None)
        places = dict.fromkeys([choice.answer.of, *(one.excerpt.of for one in plans)])
        return Outcome(choice.answer.answer, [found[of].text for of in list(places)[:3]])

    def _fork(self) -> str:
        last, _ = self.store.head(self.run)
        return fork_run(self.store, self.run, last, config=self.config)


async def _found(task: Task, goal: str, path: str = "", k: int = 0) -> list[Text]:
    if path:
        await task.add_input(path)
    hits = await task.recall(goal, k, over="sources") if k else []
    return [Text(hit.text, hit.heading, hit.score) for hit in hits]


ARMS: dict[str, Callable[[Bench, str], Awaitable[Outcome]]] = {
    "closed": lambda bench, question: bench.alone(question, 0),
    "one": lambda bench, question: bench.alone(question, 1),
    "three": lambda bench, question: bench.alone(question, 3),
    "selection": Bench.selection,
    "reader": Bench.reader,
}


# -- the run -------------------------------------------------------------------------------------------------


async def run_arm(bench: Bench, arm: str, questions: Sequence[Question]) -> list[Outcome]:
    """One outcome for each question, one question after the other."""
    outcomes: list[Outcome] = []
    for question in questions:
        start = time.perf_counter()
        outcome = await ARMS[arm](bench, question.question)
        outcome.seconds = time.perf_counter() - start
        outcomes.append(outcome)
    return outcomes


def summary(questions: Sequence[Question], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Rates over the answerable questions, the rate of `false answers` over the others, and means of the cost."""
    asked = [pair for pair in zip(questions, outcomes, strict=True) if pair[0].answers]
    absent = [outcome for question, outcome in zip(questions, outcomes, strict=True) if not question.answers]
    count, total = max(len(asked), 1), max(len(outcomes), 1)
    return {
        "right": sum(is_right(q, o.answer) for q, o in asked) / count,
        "first citation": sum(is_right(q, o.cited[0]) for q, o in asked if o.cited) / count,
        "any citation": sum(any(is_right(q, text) for text in o.cited) for q, o in asked) / count,
        "false refusals": sum(answers_nothing(o.answer or "") for _, o in asked) / count,
        "false answers": sum(not answers_nothing(o.answer or "") for o in absent) / max(len(absent), 1),
        "seconds": sum(o.seconds for o in outcomes) / total,
        "calls": sum(o.calls for o in outcomes) / total,
        "prompt tokens": sum(o.prompt_tokens for o in outcomes) / total,
    }


_RATES = 5


def print_table(questions: Sequence[Question], results: dict[str, list[Outcome]]) -> None:
    """One row an arm, then the reader's lead over each other arm with its interval."""
    heads = list(summary([], []))
    print("| arm | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for arm, outcomes in results.items():
        row = summary(questions, outcomes)
        cells = [f"{100 * row[h]:.1f} %" if i < _RATES else f"{row[h]:.1f}" for i, h in enumerate(heads)]
        print(f"| {arm} | " + " | ".join(cells) + " |")
    asked = [at for at, question in enumerate(questions) if question.answers]
    print(f"{len(asked)} questions that the input answers, {len(questions) - len(asked)} that it does not")
    for arm in [arm for arm in results if arm != "reader" and "reader" in results and asked]:
        ours, theirs = ([is_right(questions[at], results[of][at].answer) for at in asked] for of in ("reader", arm))
        points, low, high = lead(ours, theirs)
        print(f"reader - {arm}: {100 * points:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description="How well reader answers, beside the model alone.")
    parser.add_argument("--split", default="fresh", choices=["tune", "held_out", "fresh", "all"])
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="a file of questions")
    parser.add_argument("--input", default=PYTHON_REFERENCE, help="the text that they are about")
    parser.add_argument("--arms", default="closed,one,three,selection,reader", help=f"of {','.join(ARMS)}")
    parser.add_argument("--limit", type=int, help="answerable and unanswerable questions, of each")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path, help="where to write each answer, as JSON")
    options = parser.parse_args()
    unknown = set(options.arms.split(",")) - ARMS.keys()
    if unknown:
        parser.error(f"expected arms of {', '.join(ARMS)}, found {sorted(unknown)[0]!r}")
    from treering.runtime.engines.models import load_engine

    questions = load_questions(options.split, options.limit, options.questions)
    engine = load_engine(options.model)
    results = asyncio.run(_measure(engine, questions, options.arms.split(","), options.input))
    if options.out is not None:
        options.out.write_text(json.dumps(_rows(questions, results), indent=1, ensure_ascii=False), "utf-8")
    print_table(questions, results)


async def _measure(engine: Engine, questions: list[Question], arms: list[str], text: str) -> dict[str, list[Outcome]]:
    bench = Bench(engine)
    await bench.read(text)
    results: dict[str, list[Outcome]] = {}
    for arm in arms:
        results[arm] = await run_arm(bench, arm, questions)
    await engine.aclose()
    return results


def _rows(questions: Sequence[Question], results: dict[str, list[Outcome]]) -> dict[str, list[object]]:
    return {
        arm: [
            {"id": q.id, "question": q.question, "right": is_right(q, o.answer), **msgspec.to_builtins(o)}
            for q, o in zip(questions, outcomes, strict=True)
        ]
        for arm, outcomes in results.items()
    }


if __name__ == "__main__":
    main()
