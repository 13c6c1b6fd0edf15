"""Evidence recall on LoCoMo, without a judge: does recall find the dialogue turns that answer a question?

`python -m benchmarks.locomo [--part held-out] [--arms ...] [--data FILE]`. LoCoMo (Maharana and others 2024, CC BY-NC 4.0)
names for each question of its categories 1 to 4 the turns that answer it. Each conversation is a run of its own; its
turns are remembered one by one, and each question is one recall. A question counts with the share of its evidence
among the first k hits. The data is not part of this project: expected beside it.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.bootstrap import lead
from treering.events.catalogue import MemoryRef, RunConfig
from treering.events.in_memory import InMemoryStore
from treering.memory.hierarchy import memory_id
from treering.memory.lexical import STOP_WORDS, root, terms
from treering.memory.ranking import LexicalIndex
from treering.runtime.runner import Runner, create_run
from treering.runtime.task import Task
from treering.runtime.testing import ScriptedEngine

__all__ = ["ARMS", "Asked", "Conversation", "load"]

DATA = Path(__file__).parents[2] / "shared" / "data" / "locomo" / "locomo10.json"
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open", 4: "single-hop"}
DEPTHS = (5, 10)
RESAMPLES = 2000


class Asked(msgspec.Struct, frozen=True):
    """A question and the turns that answer it, by their place in the conversation."""

    question: str
    category: int
    evidence: frozenset[int]


class Conversation(msgspec.Struct, frozen=True):
    """Turns as `speaker: text [caption of a picture]`, the date of each one's session, and the questions."""

    turns: tuple[str, ...]
    dates: tuple[str, ...]
    asked: tuple[Asked, ...]


# -- the data ------------------------------------------------------------------------------------------------


def load(path: Path = DATA) -> list[Conversation]:
    """All conversations. Questions without evidence that is in the dialogue, and unanswerable ones, are left out."""
    return [_conversation(raw) for raw in json.loads(path.read_text("utf-8"))]


def _conversation(raw: dict[str, Any]) -> Conversation:
    dialogue = raw["conversation"]
    places: dict[tuple[int, int], int] = {}
    turns: list[str] = []
    dates: list[str] = []
    for session in range(1, 1 + sum(key.endswith("_date_time") for key in dialogue)):
        for turn in dialogue.get(f"session_{session}") or ():
            places[_place(turn["dia_id"])] = len(turns)
            caption = f" [{turn['blip_caption']}]" if turn.get("blip_caption") else ""
            turns.append(f"{turn['speaker']}: {turn['text']}{caption}")
            dates.append(dialogue[f"session_{session}_date_time"])
    asked: list[Asked] = []
    for question in raw["qa"]:
        named = {place for text in question["evidence"] for place in map(_place, re.findall(r"D:?\d+:\d+", text))}
        evidence = frozenset(places[place] for place in named if place in places)
        if question["category"] in CATEGORIES and evidence:
            asked.append(Asked(question["question"], question["category"], evidence))
    return Conversation(tuple(turns), tuple(dates), tuple(asked))


def _place(id: str) -> tuple[int, int]:
    session, turn = re.findall(r"\d+", id)
    return int(session), int(turn)


def part_of(conversations: Sequence[Conversation], part: str) -> list[Conversation]:
    """Every other conversation was looked at while recall was tuned; the rest was set aside before."""
    wanted = {"tuned": (0,), "held-out": (1,), "all": (0, 1)}[part]
    return [one for at, one in enumerate(conversations) if at % 2 in wanted]


# -- the arms: for each question, places of turns, best first --------------------------------------------------

Ranked = list[list[int]]


def bm25s_plain(conversation: Conversation, stemmed: bool = False) -> Ranked:
    """The library bm25s as it comes: its tokenizer, English stop words, Lucene's BM25 with k1 1.5 and b 0.75.

    With `stemmed`, Snowball's English stemmer beside it.
    """
    import bm25s
    import Stemmer

    options: dict[str, Any] = {"stopwords": "en", "show_progress": False}
    if stemmed:
        options["stemmer"] = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(conversation.turns, **options), show_progress=False)
    found: Ranked = []
    for asked in conversation.asked:
        tokens = bm25s.tokenize(asked.question, **options)
        docs, scores = index.retrieve(tokens, k=max(DEPTHS), show_progress=False)
        found.append([int(doc) for doc, score in zip(docs[0], scores[0], strict=True) if score > 0])
    return found


def lexical(conversation: Conversation, **options: Any) -> Ranked:
    """The index alone, without views or neighbours."""
    index = LexicalIndex(**options)
    for turn in conversation.turns:
        index.add(turn)
    return [[doc for doc, _ in index.search(asked.question, max(DEPTHS))] for asked in conversation.asked]


def feedback(conversation: Conversation) -> Ranked:
    """Query rewriting without a model: the words that stand out in the first five hits are asked for too (after
    Rocchio 1971), at a seventh of the weight."""
    index = LexicalIndex(0.9, 0.4, form=root)
    for turn in conversation.turns:
        index.add(turn)
    bags = [Counter(map(root, terms(turn))) for turn in conversation.turns]
    spread = Counter(term for bag in bags for term in bag)
    found: Ranked = []
    for asked in conversation.asked:
        scores = index.scores(asked.question)
        weights: Counter[str] = Counter()
        for doc, score in index.search(asked.question, 5):
            for term, count in bags[doc].items():
                if term not in STOP_WORDS and len(term) > 2:
                    weights[term] += score * count / bags[doc].total() / spread[term]  # type: ignore[assignment]
        scores = scores + 0.15 * index.scores(" ".join(term for term, _ in weights.most_common(8)))
        found.append([int(doc) for doc in np.argsort(-scores, kind="stable")[: max(DEPTHS)] if scores[doc] > 0])
    return found


def product(conversation: Conversation, dated: bool = False) -> Ranked:
    """A run that remembers each turn and recalls each question: what an agent gets."""
    texts = conversation.turns
    if dated:
        texts = tuple(f"{date}. {turn}" for date, turn in zip(conversation.dates, conversation.turns, strict=True))
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        places.setdefault(memory_id(text), place)  # a turn said twice is one memory
    found = asyncio.run(_run(texts, [asked.question for asked in conversation.asked]))
    return [[places[id] for id in ids] for ids in found]


async def _run(texts: Sequence[str], questions: Sequence[str]) -> list[list[str]]:
    store = InMemoryStore()
    config = RunConfig("live", retention="none", weights="scripted", template="words")
    async with Runner(store, create_run(store, config), ScriptedEngine(), agents={"live": _live}) as runner:
        outcome = await runner.ask("live", {"texts": texts, "questions": questions})
    if outcome.status != "finished":
        raise SystemExit(f"the run {outcome.status}: {outcome.error}")
    return msgspec.convert(outcome.result, list[list[str]])


async def _live(task: Task, goal: str, texts: list[str], questions: list[str]) -> list[list[str]]:
    for text in texts:
        await task.remember(text)
    found: list[list[str]] = []
    for question in questions:
        hits = await task.recall(question, max(DEPTHS), over="memory", access=False)
        found.append([hit.ref.id for hit in hits if isinstance(hit.ref, MemoryRef)])
    return found


ARMS: dict[str, Callable[[Conversation], Ranked]] = {
    "bm25s": bm25s_plain,
    "bm25s, stemmed": lambda one: bm25s_plain(one, stemmed=True),
    "own BM25, k1 1.2, b 0.75": lexical,
    "k1 0.9, b 0.4": lambda one: lexical(one, k1=0.9, b=0.4),
    "and roots of words": lambda one: lexical(one, k1=0.9, b=0.4, form=root),
    "and feedback, no neighbours": feedback,
    "recall (and neighbours)": product,
    "recall, dates in the text": lambda one: product(one, dated=True),
}


# -- the measure ---------------------------------------------------------------------------------------------


def shares(conversations: Sequence[Conversation], ranked: Sequence[Ranked], depth: int) -> list[float]:
    """Of each question the share of its evidence among the first `depth` hits."""
    return [
        len(asked.evidence.intersection(hits[:depth])) / len(asked.evidence)
        for one, lists in zip(conversations, ranked, strict=True)
        for asked, hits in zip(one.asked, lists, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="held-out", choices=["tuned", "held-out", "all"])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_file():
        sys.exit(f"expected LoCoMo at {options.data}, found none; --data names another place")
    conversations = part_of(load(options.data), options.part)
    categories = [asked.category for one in conversations for asked in one.asked]
    print(time.strftime("%Y-%m-%d"), f"LoCoMo, {options.part}: {len(conversations)} conversations,", end=" ")
    print(f"{sum(len(one.turns) for one in conversations)} turns, {len(categories)} questions")
    print(
        "| arm | recall@5 | recall@10 | " + " | ".join(f"{name} @5, @10" for name in CATEGORIES.values()) + " | s |"
    )
    print("|---" * (4 + len(CATEGORIES)) + "|")
    results: dict[str, list[list[float]]] = {}
    for name in options.arms:
        started = time.perf_counter()
        ranked = [ARMS[name](one) for one in conversations]
        seconds = time.perf_counter() - started
        results[name] = [shares(conversations, ranked, depth) for depth in DEPTHS]
        cells = [f"{100 * np.mean(found):.1f}" for found in results[name]]
        for category in CATEGORIES:
            mine = [np.array(found)[np.array(categories) == category] for found in results[name]]
            cells.append(", ".join(f"{100 * np.mean(found):.1f}" for found in mine))
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)
    if "bm25s" in results:
        for name in [name for name in results if name.startswith("recall")]:
            for at, depth in enumerate(DEPTHS):
                points, low, high = (
                    100 * value for value in lead(results[name][at], results["bm25s"][at], RESAMPLES)
                )
                print(f"{name} - bm25s @{depth}: {points:+.1f} points (95 %: {low:+.1f} to {high:+.1f})")


if __name__ == "__main__":
    main()
