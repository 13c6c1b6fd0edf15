"""The pure part of reading: prompts, candidates, and the choice among them.

Owns what is asked about one passage, what counts as an answer, and how candidates are ranked without asking a
model to merge them (merging by generation loses more than it gains with a small model). It performs nothing.
"""

import re
from collections.abc import Sequence

import msgspec

from treering.memory.lexical import query_terms, terms

__all__ = [
    "SYSTEM",
    "Candidate",
    "answers_nothing",
    "coverage",
    "question_prompt",
    "rank",
    "support",
]

SYSTEM = "You answer questions from a text. Answer in one short sentence, with words from the text."
_NOTHING = re.compile(
    r"\b(?:not (?:mentioned|stated|specified|given|say)|no information|does not (?:say|mention))", re.I
)
_MIN_COVERAGE = 0.5


class Candidate(msgspec.Struct, frozen=True):
    """One passage's answer. `position` is the passage's rank in the recall; `score` that of the recall."""

    answer: str
    passage: str
    position: int
    score: float
    likelihood: float | None = None


def question_prompt(question: str) -> tuple[str, str]:
    """What comes before and after the passage in the prompt of one child."""
    return "Text:\n", f"\n\nQuestion: {question}\nAnswer in one short sentence."


def answers_nothing(answer: str) -> bool:
    """Whether a reply only says that the text does not tell."""
    return not answer.strip() or bool(_NOTHING.search(answer))


def coverage(question: str, passage: str) -> float:
    """The share of the question's terms that stand in a passage, 0 to 1."""
    wanted = set(query_terms(question))
    return len(wanted & set(terms(passage))) / len(wanted) if wanted else 0.0


def support(answer: str, question: str, passage: str) -> float:
    """The share of the answer's new words that stand in the passage: what is not there was made up."""
    fresh = set(terms(answer)) - set(terms(question))
    return len(fresh & set(terms(passage))) / len(fresh) if fresh else 0.0


def rank(candidates: Sequence[Candidate], question: str) -> list[Candidate]:
    """Candidates, best first; those whose passage hardly speaks of the question are left out.

    The score adds the recall's relative score, the support of the answer, and how likely the question is
    given the passage, each on a scale of about one.
    """
    kept = [
        candidate
        for candidate in candidates
        if not answers_nothing(candidate.answer) and coverage(question, candidate.passage) >= _MIN_COVERAGE
    ]
    if not kept:
        return []
    best = max(candidate.score for candidate in kept) or 1.0
    likely = [candidate.likelihood for candidate in kept if candidate.likelihood is not None]
    top = max(likely) if likely else 0.0

    def worth(candidate: Candidate) -> float:
        like = 0.0 if candidate.likelihood is None else max(-1.0, candidate.likelihood - top)
        return candidate.score / best + support(candidate.answer, question, candidate.passage) + like

    return sorted(kept, key=lambda candidate: (-worth(candidate), candidate.position))
