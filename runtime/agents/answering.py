"""How answers are asked for and chosen: the pure part of `reader`.

Owns what a child asks the model about one excerpt, how the answers of all children are ordered, when there is no
answer, and what is remembered. It performs nothing. Invariant: everything here is a function of its arguments.

A small model answers badly, but it can tell which of two answers a question was asked for. "Write the question
that this answer belongs to" is a noisy channel, P(question | text, answer): the same question is scored for every
candidate, so that neither the answer's length nor how common it is needs a correction (after Lewis and Fan 2019,
Generative Question Answering).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from treering.runtime.agents.candidates import Candidate, core, weighed
from treering.runtime.agents.excerpts import (
    Excerpt,
    Text,
    asked_roots,
    best_excerpt,
    roots,
    sentences,
    share,
    term_weights,
)

__all__ = [
    "Choice",
    "Plan",
    "answers_nothing",
    "choose",
    "concluded",
    "conclusion",
    "plan",
    "replied",
    "sentence_of",
]

EXCERPTS = 5
CANDIDATES = 12
_CHANNEL_WEIGHT = 3.0
_PASSAGE_COVERAGE_WEIGHT = 10.0
_MIN_COVERAGE = 0.38
_MIN_OVERLAP = 0.6
_ASKING = frozenset(
    "what who whom whose when where why how not no never without t before after first last less more least most".split()
)


class Plan(msgspec.Struct, frozen=True):
    """What one child reads and which answers it weighs."""

    excerpt: Excerpt
    candidates: tuple[Candidate, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """The decision: `answer` is None where nothing answers; `ranked` is best first all the same."""

    answer: Candidate | None
    ranked: tuple[Candidate, ...] = ()


# -- before the children ----------------------------------------------------------------------------------------


def plan(question: str, texts: Sequence[Text]) -> list[Plan]:
    """What the children read, best first: at most EXCERPTS excerpts with CANDIDATES answers in all.

    Equal texts count once. An answer is given to the excerpt where most speaks for it, so that each is asked for
    once; an excerpt may be left without any.
    """
    weights = term_weights(question, texts)
    chosen = _strongest(weights, texts)[:EXCERPTS]
    top = max((strength for strength, _ in chosen), default=0.0) or 1.0
    best: dict[str, Candidate] = {}
    for strength, excerpt in chosen:
        for candidate in weighed(question, weights, excerpt, strength / top):
            same = core(candidate.answer)
            if same not in best or candidate.prior > best[same].prior:
                best[same] = candidate
    kept = sorted(best.values(), key=lambda c: (-c.prior, c.of, c.start))[:CANDIDATES]
    return [Plan(excerpt, tuple(c for c in kept if c.of == excerpt.of)) for _, excerpt in chosen]


def _strongest(weights: Mapping[str, float], texts: Sequence[Text]) -> list[tuple[float, Excerpt]]:
    """Excerpts and their strength, strongest first."""
    found: list[tuple[float, Excerpt]] = []
    seen: set[str] = set()
    for of, text in enumerate(texts):
        plain = " ".join(text.text.split())
        if plain and plain not in seen:
            seen.add(plain)
            excerpt = best_excerpt(weights, of, text)
            found.append((text.score + _PASSAGE_COVERAGE_WEIGHT * excerpt.coverage, excerpt))
    return sorted(found, key=lambda entry: (-entry[0], entry[1].of))


# -- what a child says ------------------------------------------------------------------------------------------

# A whole reply that says so, not an answer in which something "is not given".
_ABSENT = re.compile(
    r"\W*(?:not (?:in|stated|mentioned|given|answered)\b|no (?:answer|information|mention)\b"
    r"|there (?:is|was) no (?:answer|information|mention)\b|(?:the|this) (?:text|passage|input|document) do(?:es)? not\b"
    r"|(?:it|that|this|the answer) (?:is|was) not (?:in the|stated|mentioned|given|specified|answered|said)\b)",
    re.IGNORECASE,
)


def answers_nothing(reply: str) -> bool:
    """Whether a reply is empty, or only says that the text does not tell."""
    return not reply.strip() or _ABSENT.match(reply) is not None


def replied(question: str, excerpt: Excerpt, reply: str) -> Candidate | None:
    """A generated answer as a candidate: what speaks for it is that its new words stand in the excerpt."""
    answer = " ".join(reply.split())
    if answers_nothing(answer):
        return None
    new = roots(answer) - roots(question)
    support = len(new & roots(excerpt.shown)) / len(new) if new else 0.0
    prior = 4.0 * support + 2.0 * excerpt.coverage
    return Candidate(answer, excerpt.of, excerpt.start, excerpt.end, round(prior, 6), excerpt.coverage)


# -- after the children -----------------------------------------------------------------------------------------


def choose(candidates: Iterable[Candidate]) -> Choice:
    """Order candidates by what speaks for them; the first is the answer unless too little of the question is met."""
    ranked = tuple(sorted(candidates, key=lambda c: (-_strength(c), c.of, c.answer)))
    covered = max((candidate.coverage for candidate in ranked), default=0.0)
    return Choice(ranked[0] if ranked and covered >= _MIN_COVERAGE else None, ranked)


def _strength(candidate: Candidate) -> float:
    return candidate.prior + (0.0 if candidate.channel is None else _CHANNEL_WEIGHT * candidate.channel)


def sentence_of(text: str, answer: str, question: str) -> str:
    """The sentence of `text` that gives `answer`, or else covers most of `question`, on one line."""
    wanted = dict.fromkeys(asked_roots(question), 1.0)
    same = core(answer)
    best, best_score = text, -1.0
    for sentence in sentences(text):
        found = text[sentence.start : sentence.end]
        score = share(wanted, (roots(found), 1.0)) + 2.0 * (same in found.casefold())
        if score > best_score:
            best, best_score = found, score
    return " ".join(best.split())


# -- what is kept, and met again --------------------------------------------------------------------------------


def conclusion(question: str, answer: str, sentence: str) -> str:
    """What is remembered of an answer: a line each for the question, the answer and the sentence it stands in."""
    lines = [" ".join(question.split()), answer]
    return "\n".join(lines if sentence in lines else [*lines, sentence])


def concluded(question: str, memory: str) -> str | None:
    """The answer that a memory already holds to this question, or None.

    It does if it was made for much the same question, asked in the same way (when, who, why, not), and no term of
    the new one is missing in it.
    """
    asked, _, rest = memory.partition("\n")
    answer, _, _ = rest.partition("\n")
    new, old = set(asked_roots(question)), set(asked_roots(asked))
    if not answer or not new or not new <= roots(memory) or _way(question) != _way(asked):
        return None
    return answer if len(new & old) / len(new | old) >= _MIN_OVERLAP else None


def _way(question: str) -> set[str]:
    """What recall ignores in a question and an answer depends on: which word asks, and whether it denies."""
    words = {word.replace("which", "what") for word in re.findall(r"[a-z]+", question.casefold())}
    return words & _ASKING
