"""Recall over 100,000 memories of real text: median and 95th percentile.

`python -m benchmarks.bench_recall [--items 100000] [--questions 400]`. The items are cuts of five lines from the
standard library's sources; the questions are LoCoMo's where its file is there, else those of `questions.json`. Rows:
a root that only recalls; one that remembers between recalls; a child that wrote memories of its own, with 200 others
gone cold; the most frequent words of the text.
"""

import argparse
import json
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.locomo import DATA, load
from treering.memory.finding import RecallIndex
from treering.memory.hierarchy import TRUNK, Hierarchy, memory_id
from treering.memory.lexical import terms
from treering.memory.recall import Query

__all__ = ["main"]

MEDIAN_MS, P95_MS = 30.0, 100.0


def main(items: int = 100_000, count: int = 400) -> None:
    """Print one row each; exit code 1 if a bar is missed."""
    texts = list(dict.fromkeys(_texts(items)))[:items]
    questions = _questions()
    step = max(1, len(questions) // count)
    questions = questions[::step][:count]
    print(
        time.strftime("%Y-%m-%d"),
        f"{len(texts)} memories, {len(questions)} questions, Python",
        sys.version.split()[0],
    )
    hierarchy, index = Hierarchy(), RecallIndex()
    for at, text in enumerate(texts, 1):
        hierarchy.remember(TRUNK, memory_id(text), text, 40, (), False, "1", at, at)
    started = time.perf_counter()
    _recall(hierarchy, index, TRUNK, "nothing")
    print(f"indexed in {time.perf_counter() - started:.1f} s")
    print("| recall by | median ms | p95 ms | most ms | bar | |\n|---|---|---|---|---|---|")
    met = _row("a root", [_recall(hierarchy, index, TRUNK, question) for question in questions])
    met &= _row("a root that remembers between recalls", list(_remembering(hierarchy, index, questions)))
    hierarchy.open("1.1", TRUNK)
    for at in range(500):
        hierarchy.remember("1.1", f"own{at}", f"{texts[at]} once more", 40, (), False, "1.1", at, 0)
    for text in texts[:200]:
        hierarchy.evict(memory_id(text))
    met &= _row("a child with memories of its own", [_recall(hierarchy, index, "1.1", one) for one in questions])
    most = Counter(term for text in texts[::10] for term in set(terms(text)))
    worst = [" ".join(term for term, _ in most.most_common(at + 8)[at:]) for at in range(100)]
    met &= _row("a root, eight frequent words", [_recall(hierarchy, index, TRUNK, one) for one in worst])
    if not met:
        sys.exit(1)


def _recall(hierarchy: Hierarchy, index: RecallIndex, scope: str, question: str) -> float:
    started = time.perf_counter()
    index.recall(hierarchy, hierarchy.view(scope), Query(question, over="memory"), set(), lambda task: 0)
    return time.perf_counter() - started


def _remembering(hierarchy: Hierarchy, index: RecallIndex, questions: list[str]) -> Iterator[float]:
    for at, question in enumerate(questions):
        hierarchy.remember(TRUNK, f"new{at}", question, 12, (), False, "2", at, at)
        yield _recall(hierarchy, index, TRUNK, question)


def _row(what: str, seconds: list[float]) -> bool:
    ranked = sorted(1000 * one for one in seconds)
    median, high = ranked[len(ranked) // 2], ranked[int(0.95 * len(ranked))]
    met = median <= MEDIAN_MS and high <= P95_MS
    bar = f"<= {MEDIAN_MS:g}, <= {P95_MS:g} | {'met' if met else 'MISSED'} |"
    print(f"| {what} | {median:.1f} | {high:.1f} | {ranked[-1]:.1f} | {bar}", flush=True)
    return met


def _texts(most: int) -> Iterator[str]:
    found = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or found > 2 * most:
            continue
        lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
        for at in range(0, len(lines), 5):
            found += 1
            yield "\n".join(lines[at : at + 5])


def _questions() -> list[str]:
    if DATA.is_file():
        return [asked.question for one in load() for asked in one.asked]
    raw = json.loads((Path(__file__).parent / "questions.json").read_text("utf-8"))
    return [question["question"] for kind in raw.values() for question in kind]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    main(options.items, options.questions)
