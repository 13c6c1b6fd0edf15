"""A window's entries, their order, and what compaction does to them."""

from treering.events.catalogue import Compacted, Entry, Loss, MemoryRef, ModelCalled, ModelReplied
from treering.memory.windows import EMPTY_DIGEST, Window, roll


def _exchange(op: int, window: Window, part: object = "asked") -> None:
    called = ModelCalled("r", (Entry("user", (part,), 3),), 3, 5)  # type: ignore[arg-type]
    window.enter(op, called, ModelReplied("answered", tokens=4))


def test_entries_stand_in_the_order_of_ops():
    """Outcomes that came in another order do not show."""
    one, other = Window(), Window()
    for op in (1, 2, 3):
        _exchange(op, one)
    for op in (3, 1, 2):
        _exchange(op, other)
    assert one == other
    assert one.tokens == 21


def test_a_summary_takes_the_place_of_what_left():
    """The window shrinks, and its size is that of its entries."""
    window = Window()
    for op in (1, 2, 3):
        _exchange(op, window)
    left = window.compact(
        4, Compacted(((1, 0), (1, 1), (2, 0), (2, 1)), "short", 2, 14, "model", Loss(0.0, 0), "full")
    )
    assert len(left) == 4
    assert [(item.op, item.entry.parts[0]) for item in window.entries] == [
        (1, "short"),
        (3, "asked"),
        (3, "answered"),
    ]
    assert window.tokens == 9


def test_memories_in_a_window_are_known():
    """An entry that points at a memory protects it."""
    window = Window()
    _exchange(1, window, MemoryRef("m1"))
    assert window.memories() == {"m1"}


def test_the_rolling_digest_is_of_content_and_order():
    """Same messages, same digest; another order or role, another digest."""
    one = roll(roll(EMPTY_DIGEST, "user", "a"), "assistant", "b")
    assert one == roll(roll(EMPTY_DIGEST, "user", "a"), "assistant", "b")
    assert one != roll(roll(EMPTY_DIGEST, "assistant", "b"), "user", "a")
    assert one != roll(roll(EMPTY_DIGEST, "user", "ab"), "assistant", "")
