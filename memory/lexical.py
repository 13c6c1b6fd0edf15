"""Lexical recall: how text becomes terms.

Owns tokenisation, stop words and the forms of a word. Invariant: the same text gives the same terms.
"""

import re
import unicodedata
from functools import lru_cache

__all__ = ["STOP_WORDS", "query_terms", "root", "stem", "terms"]

_STOP_WORDS = (
    "a an and any are as at be been but by can could did do does for from had has have he her his how i if in into"
    " is it its me my no not of on or our please she so some tell than that the their them then there these they"
    " this to was we were what when where which who whom whose why will with would you your"
)

_WORD = re.compile(r"\w+(?:[.'’]\w+)*")
_PART = re.compile(r"[._]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_APOSTROPHE = re.compile(r"['’]")
_POSSESSIVE = re.compile(r"['’][sS]$")
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2,}")
_SIBILANT = re.compile(r"(ss|x|sh|[tnr]ch|[eo]ach)es$")
_SUFFIXES = ("ation", "ition", "ing", "ion", "ed", "es", "er", "s", "ly")


def terms(text: str) -> list[str]:
    """Index terms of `text` in order, repeats included.

    A word is case-folded and stemmed. `snake_case`, `camelCase` and dotted names give themselves whole, then
    their parts; runs of ideographs give their pairs, since nothing else parts their words.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    found: list[str] = []
    for word in _WORD.findall(text):
        found.extend(_terms_of(word))
    return found


def query_terms(query: str) -> list[str]:
    """Distinct terms of `query` in order of first appearance, without stop words unless it has no others."""
    distinct = list(dict.fromkeys(terms(query)))
    return [term for term in distinct if term not in STOP_WORDS] or distinct


def stem(word: str) -> str:
    """Singular of a lower-case English word, roughly: the S-stemmer (Harman 1991), and `-sses`, `-xes`, `-shes`."""
    if len(word) < 4 or word[-1] != "s" or word[-2] in "us":
        return word
    if _SIBILANT.search(word):
        return word[:-2]
    if word.endswith("ies") and word[-4] not in "ea":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] in "aeo":
        return word
    return word[:-1]


@lru_cache(maxsize=1 << 16)
def root(term: str) -> str:
    """A term without its inflection, roughly, so that `deletes` meets `deleted`; names stay as they are."""
    if "_" in term or not term.isalpha():
        return term
    for suffix in _SUFFIXES:
        if term.endswith(suffix) and len(term) - len(suffix) >= 4:
            term = term[: -len(suffix)]
            break
    if len(term) > 4 and term[-1] == term[-2]:
        term = term[:-1]
    return term[:-1] if len(term) > 3 and term[-1] in "ey" else term


STOP_WORDS = frozenset(stem(word) for word in _STOP_WORDS.split())


@lru_cache(maxsize=1 << 16)
def _terms_of(word: str) -> tuple[str, ...]:
    """Terms of one word as it stands in the text: the whole, then its parts if it has several."""
    word = _POSSESSIVE.sub("", word)
    ideographs = [run[at : at + 2] for run in _IDEOGRAPHS.findall(word) for at in range(len(run) - 1)]
    plain = _APOSTROPHE.sub("", word).strip("_")
    parts = [part.casefold() for name in _PART.split(plain) if name for part in _CAMEL.split(name)]
    if len(parts) < 2:
        return (*(stem(part) for part in parts), *ideographs)
    return (plain.casefold(), *(stem(part) for part in parts), *ideographs)
