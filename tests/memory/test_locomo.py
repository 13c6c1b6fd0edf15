"""Recall on dialogues: a small one written here, and one of LoCoMo's where its file is there."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.locomo import DATA, Asked, Conversation, lexical, load, part_of, product, shares

LINES = [
    "Ann: I went sailing with my brother last weekend.",
    "Bob: Lovely! Where did the two of you end up?",
    "Ann: At a tiny island full of puffins.",
    "Bob: I stayed at home and painted the fence.",
    "Ann: What colour did you choose for the fence?",
    "Bob: Something like moss.",
]


def test_an_answer_is_found_by_the_question_before_it() -> None:
    """A turn that shares a word with the query counts for more beside one that shares most of them."""
    turns = (
        *LINES[:3],
        "Bob: Moss grows.",
        *[f"Bob: note {at} of the log." for at in range(4)],
        *LINES[3:],
    )
    asked = Asked("Which colour of moss did Bob choose for the fence?", 4, frozenset({10}))
    one = Conversation(turns, ("",) * len(turns), (asked,))
    beside, alone = product(one)[0], lexical(one, k1=0.9, b=0.4)[0]
    assert alone.index(3) < alone.index(10)
    assert beside.index(10) < beside.index(3)


def test_evidence_is_read_in_every_form_that_the_data_has(tmp_path: Path) -> None:
    """Ids are joined by blanks or semicolons, padded, or wrong; what has none left is left out."""
    turn = {"speaker": "Ann", "text": "Hello.", "dia_id": "D1:1"}
    qa = [
        {"question": "one", "evidence": ["D1:1; D1:02"], "category": 4},
        {"question": "two", "evidence": ["D:1:2"], "category": 1},
        {"question": "none", "evidence": ["D", "D9:9"], "category": 1},
        {"question": "unanswerable", "evidence": ["D1:1"], "category": 5},
    ]
    dialogue = {
        "session_1_date_time": "noon",
        "session_1": [turn, {**turn, "dia_id": "D1:2", "blip_caption": "a cat"}],
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"conversation": dialogue, "qa": qa}] * 3))
    one, *_ = load(path)
    assert one.turns == ("Ann: Hello.", "Ann: Hello. [a cat]")
    assert [(asked.question, asked.evidence) for asked in one.asked] == [("one", {0, 1}), ("two", {1})]
    assert [len(part_of(load(path), part)) for part in ("tuned", "held-out", "all")] == [2, 1, 3]
    assert shares([one], [[[1, 0], [0]]], 1) == [0.5, 0.0]


@pytest.mark.skipif(not DATA.is_file(), reason=f"LoCoMo is no part of this project, and not at {DATA}")
def test_recall_beats_plain_bm25_on_a_conversation_set_aside() -> None:
    """By more than ten points of evidence among the first ten, over the index without what recall adds."""
    one = part_of(load(), "held-out")[:1]
    ours, plain = (np.mean(shares(one, [arm(one[0])], 10)) for arm in (product, lexical))
    assert ours > plain + 0.1
