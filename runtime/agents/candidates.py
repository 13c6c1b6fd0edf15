"""Which answers stand in an excerpt: names, numbers and short phrases, or sentences, with what speaks for each.

Owns what could be an answer and how it is weighed before a model is asked. Never calls a model. Invariant:
everything here is a function of its arguments.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

from treering.memory.lexical import query_terms, root
from treering.runtime.agents.excerpts import Excerpt, Sentence, is_lead, roots, sentences, share

__all__ = ["Candidate", "asks_for_a_name", "core", "spans_in", "weighed"]

# Weights of what speaks for an answer before a model is asked: rounded from a fit on that half of the questions in
# benchmarks/questions.json which was not set aside.
_NAME_WEIGHTS = {"coverage": 2.0, "near": 1.5, "kind": 1.5, "member": 2.0, "code": 1.5, "rank": 2.0, "phrase": -0.7}
_SENTENCE_WEIGHTS = {"coverage": 3.0, "rank": 2.0, "prose": 1.0, "opens": 0.5}

_TOKEN = re.compile(
    r'"[^"\n]{1,40}"|“[^”\n]{1,40}”|(?<!\w)\'[^\'\n]{1,30}\'(?!\w)|\*\*[^*\n]{1,40}\*\*'
    r"|[\w.][\w.\-]*(?:\(\))?|[^\w\s]"
)
_QUOTES = "\"“”'*"
_PHRASE_WORDS = 3
_INNER = frozenset({"to", "of"})
_DULL = frozenset(
    "a all also an and another any are as at be because been before being between both but by call called case cases"
    " can could did do does down each either etc even example following for from given had has have he her here his"
    " how however i if in into is it its just like may might more must no not note of on one only or other otherwise"
    " our out over same see shall she should since so still such than that the their them then there these they this"
    " those to too under until up use used using usually very was we were what when where whether which while who"
    " will with within without would yet you".split()
)
_CODE = re.compile(r"_|\(|[a-z][A-Z]")
_NUMBER = re.compile(r"[\d.,]+|[A-Z]+ \d+")
_ERROR = re.compile(r"(?:Error|Exception|Exit|Iteration|Warning|Interrupt|Group)$")
_MEMBER = re.compile(r"[\w.]*[_(][^ ]*")
_ASKS_ERROR = re.compile(r"\b(?:exception|error|warning)s?\b", re.IGNORECASE)
_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|much|long|old|far)|version|pep|rfc|year|when|number|port|age)\b", re.IGNORECASE
)
_ASKS_WHO = re.compile(r"\b(?:who|whose|whom|where|company|person|city|country)\b", re.IGNORECASE)
_ASKS_CODE = re.compile(
    r"\b(?:method|function|attribute|variable|keyword|statement|operator|command|option|prefix|symbol|letter|character"
    r"|class|module|constant|flag|clause|file|type|argument|parameter|field|hook)s?\b",
    re.IGNORECASE,
)
_ASKS_MEMBER = re.compile(r"\b(?:method|function|attribute|hook|variable)s?\b", re.IGNORECASE)
_ASKS_SYMBOL = re.compile(r"\b(?:symbol|operator|character|sign|mark)s?\b", re.IGNORECASE)
_ASKED = re.compile(r"\b(?:which|what|who|whose|how many|how much|when|where)\b", re.IGNORECASE)
_DESCRIBES = re.compile(
    r"\s*(?:what\s+(?:does|do|did|happens|(?:is|are|was|were)\s+(?!the\s+(?:name|number|type|value|year|date|"
    r"age|default)\b|used\b|added\b|put\b|raised\b|called\b|returned\b))|how\s+(?!many\b|much\b|long\b|old\b|far\b|often\b)|why\b"
    r"|explain\b|describe\b|define\b|summari[sz]e\b|tell\b|can\b|is\b|are\b|does\b|do\b)",
    re.IGNORECASE,
)


class Candidate(msgspec.Struct, frozen=True):
    """An answer that stands in `text[start:end]` of text number `of`.

    `prior` is what speaks for it without a model, `coverage` the share of the question that its excerpt covers.
    `channel` is the mean log-probability per token of the question given the answer, once a model was asked.
    """

    answer: str
    of: int
    start: int
    end: int
    prior: float
    coverage: float
    channel: float | None = None


class _Span(msgspec.Struct, frozen=True):
    start: int
    end: int
    answer: str
    form: str  # quoted, code, number, name, word or phrase


class _Setting(msgspec.Struct, frozen=True):
    """What all answers of one excerpt are weighed against.

    `around` are the roots of each sentence, `above` those of the heading and the first line; `words` are (start, end,
    root) of each word, and `wanted` the roots of what is asked for: the terms that follow "which".
    """

    shown: str
    units: list[Sentence]
    around: list[set[str]]
    above: set[str]
    words: list[tuple[int, int, str]]
    wanted: set[str]


def asks_for_a_name(question: str) -> bool:
    """Whether a name, a number or a short phrase answers; otherwise (what does, how, why) a sentence does."""
    return not _DESCRIBES.match(question)


def core(answer: str) -> str:
    """What two spellings of one answer share: `object.__del__(self)` and `__del__()` are one."""
    head = re.sub(r"\(.*", "", answer).strip().casefold()
    return (head.rpartition(".")[2] if re.fullmatch(r"[a-z_][\w.]*", head) else head) or answer.casefold()


def weighed(question: str, weights: Mapping[str, float], excerpt: Excerpt, rank: float) -> Iterable[Candidate]:
    """The answers of an excerpt that say something the question does not.

    `weights` are those of the question's terms, `rank` the strength of the excerpt among the others, 0 to 1.
    """
    found = _names if asks_for_a_name(question) else _sentences
    for start, end, answer, prior in found(question, weights, excerpt, rank):
        yield Candidate(answer, excerpt.of, *_placed(excerpt, start, end), round(prior, 6), excerpt.coverage)


def _placed(excerpt: Excerpt, start: int, end: int) -> tuple[int, int]:
    """Where characters of what is shown stand in the text."""
    lead = excerpt.lead_end - excerpt.lead_start
    moved = excerpt.start - lead - 1 if lead else excerpt.start
    if lead and end <= lead:
        moved = excerpt.lead_start
    return start + moved, end + moved


_Weighed = Iterable[tuple[int, int, str, float]]


def _names(question: str, weights: Mapping[str, float], excerpt: Excerpt, rank: float) -> _Weighed:
    asked = " ".join(re.sub(r"[\"“”*`]", " ", question).split()).casefold()
    symbols = _ASKS_SYMBOL.search(question) is not None
    setting = _setting(question, excerpt)
    for span in _spans(excerpt.shown):
        own = roots(span.answer)
        if (own - weights.keys() if own else symbols) and core(span.answer) not in asked:
            found = {**_features(question, weights, setting, span), "rank": rank}
            yield span.start, span.end, span.answer, sum(_NAME_WEIGHTS[name] * found[name] for name in _NAME_WEIGHTS)


def _sentences(question: str, weights: Mapping[str, float], excerpt: Excerpt, rank: float) -> _Weighed:
    above = roots(excerpt.heading)
    for sentence in sentences(excerpt.shown):
        answer = " ".join(excerpt.shown[sentence.start : sentence.end].split())
        own = roots(answer)
        if own - weights.keys():
            lead = roots(excerpt.shown[sentence.lead_start : sentence.lead_end])
            found = {
                "coverage": share(weights, (own, 1.0), (lead, 0.9), (above, 0.5)),
                "rank": rank,
                "prose": float(sentence.prose and len(answer) > 20),
                "opens": float(sentence.start == 0 or not excerpt.shown[: sentence.start].strip()),
            }
            prior = sum(_SENTENCE_WEIGHTS[name] * found[name] for name in _SENTENCE_WEIGHTS)
            yield sentence.start, sentence.end, answer, prior


def spans_in(text: str) -> list[tuple[int, int, str]]:
    """Start, end and words of everything in `text` that could be a short answer, in order.

    Quoted terms, numbers, and runs of up to three words without a dull one.
    """
    return [(span.start, span.end, span.answer) for span in _spans(text)]


def _spans(text: str) -> list[_Span]:
    found: dict[tuple[int, int], _Span] = {}
    run: list[tuple[int, int]] = []
    for token in [*_TOKEN.finditer(text), None]:
        word = "" if token is None else token[0]
        quoted = word[:1] in "\"“'*" and len(word) > 2
        bare = word.strip(".").casefold()
        plain = not quoted and any(character.isalnum() or character == "_" for character in bare)
        if token is not None and plain and (bare not in _DULL or (run and bare in _INNER)):
            run.append((token.start(), token.end() - word.endswith(".")))
            if not word.endswith("."):
                continue
        for span in _phrases(text, run):
            found.setdefault((span.start, span.end), span)
        run = []
        if token is not None and quoted:
            answer = word.strip(_QUOTES) or word[1:-1]
            form = "number" if _NUMBER.fullmatch(answer) else "quoted"
            found[token.span()] = _Span(*token.span(), answer, form)
        elif token is not None and not plain:
            found.setdefault(token.span(), _Span(*token.span(), word, "symbol"))
    return sorted(found.values(), key=lambda span: (span.start, span.end))


def _phrases(text: str, run: list[tuple[int, int]]) -> Iterable[_Span]:
    for first, (start, _) in enumerate(run):
        for last in range(first, min(first + _PHRASE_WORDS, len(run))):
            end = run[last][1]
            ends = {text[start : run[first][1]].casefold(), text[run[last][0] : end].casefold()}
            if not ends & _DULL:
                answer = " ".join(text[start:end].split())
                yield _Span(start, end, answer, _form(text, start, answer, first == last))


def _form(text: str, start: int, answer: str, single: bool) -> str:
    if any(character.isdigit() for character in answer):
        return "number"
    if _CODE.search(answer):
        return "code"
    opens = start == 0 or text[start - 1] == "\n" or text[max(0, start - 2) : start] == ". "
    if answer[0].isupper() and not opens:
        return "name"
    return "word" if single else "phrase"


def _setting(question: str, excerpt: Excerpt) -> _Setting:
    shown = excerpt.shown
    units = sentences(shown)
    asked = _ASKED.search(question)
    return _Setting(
        shown,
        units,
        [roots(shown[unit.start : unit.end]) for unit in units],
        roots(f"{excerpt.heading} {shown.partition(chr(10))[0]}"),
        [(match.start(), match.end(), root(match[0].casefold())) for match in re.finditer(r"\w+", shown)],
        {root(term) for term in query_terms(question[asked.end() :] if asked else question)[:2]},
    )


def _features(question: str, weights: Mapping[str, float], setting: _Setting, span: _Span) -> dict[str, float]:
    """What speaks for the answer at `span` without a model, each about between -1 and 1.

    `coverage`: share of the question's weight in the sentence around it, less in the next ones and the heading.
    `near`: closeness of what is asked for. `kind`: whether its form is that of what is asked for. `member`: a
    member's name where one is asked for. `code`: quoted or code.
    """
    shown, units = setting.shown, setting.units
    at = next((i for i, unit in enumerate(units) if unit.start <= span.start < unit.end), 0)
    unit = units[at]
    own = roots(f"{shown[unit.start : span.start]} {shown[span.end : unit.end]}")
    after = setting.around[at + 1] if at + 1 < len(units) else set()
    before = setting.around[at - 1] if at else set()
    defines = at + 1 < len(units) and is_lead(shown[unit.start : unit.end])
    layers = [(own, 1.0), (after, 0.8 if defines else 0.5), (before, 0.5), (setting.above, 0.4)]
    return {
        "coverage": share(weights, *layers),
        "near": _nearness(setting, span),
        "kind": _kind(question, span),
        "member": float(bool(_ASKS_MEMBER.search(question) and _MEMBER.fullmatch(span.answer))),
        "code": float(span.form in ("quoted", "code")),
        "phrase": float(" " in span.answer),
    }


def _nearness(setting: _Setting, span: _Span) -> float:
    words, wanted = setting.words, setting.wanted
    first = next((i for i, word in enumerate(words) if word[1] > span.start), len(words))
    last = max((i for i, word in enumerate(words) if word[0] < span.end), default=0)
    gaps = [first - i if i < first else i - last for i, word in enumerate(words) if word[2] in wanted]
    inside = 1.0 if span.form == "number" else 0.0  # "version 3.7", where a version is asked for
    return max((1 / (1 + gap / 4) if gap > 0 else inside for gap in gaps), default=0.0)


def _kind(question: str, span: _Span) -> float:
    if _ASKS_ERROR.search(question):
        return 1.0 if _ERROR.search(span.answer) else -1.0
    if _ASKS_NUMBER.search(question):
        return 1.0 if span.form == "number" else -1.0
    if _ASKS_WHO.search(question):
        return 1.0 if span.form == "name" else 0.0
    return float(bool(_ASKS_CODE.search(question)) and span.form in ("quoted", "code"))
