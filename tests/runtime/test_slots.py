"""Slots go to the deepest that waits; whoever gives up waiting takes none with it."""

import anyio
import anyio.lowlevel

from treering.runtime.slots import Slots


async def test_the_deepest_goes_first_then_the_one_that_asked_first():
    """Whatever the order in which they came."""
    slots, order = Slots(1), []

    async def ask(name, depth):
        async with slots.hold(depth):
            order.append(name)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group, slots.hold(1):
        for name, depth in [("a1", 1), ("b3", 3), ("c2", 2), ("d3", 3), ("e1", 1)]:
            group.start_soon(ask, name, depth)
            await anyio.sleep(0.01)
    assert order == ["b3", "d3", "c2", "a1", "e1"]


async def test_no_more_than_the_limit_hold_a_slot_and_none_is_lost():
    """Also where some give up: while they wait, or as their turn comes."""
    slots, held, most = Slots(2), 0, 0

    async def ask(patience_s):
        nonlocal held, most
        with anyio.move_on_after(patience_s):
            async with slots.hold(1):
                held += 1
                most = max(most, held)
                try:
                    await anyio.sleep(0.01)
                finally:
                    held -= 1

    async with anyio.create_task_group() as group:
        for n in range(30):
            group.start_soon(ask, 0.004 * n)
    assert (held, most) == (0, 2)
    with anyio.fail_after(1):
        async with slots.hold(1), slots.hold(1):
            pass
