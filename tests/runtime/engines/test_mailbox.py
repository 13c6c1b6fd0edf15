"""The way back from a thread, on asyncio and on trio."""

import threading

import anyio

from treering.runtime.engines.mailbox import Mailbox


async def test_items_arrive_in_order_from_another_thread():
    """What a thread puts is got by the waiting task, in order."""
    box: Mailbox[int] = Mailbox()
    thread = threading.Thread(target=lambda: [box.put(number) for number in range(100)])
    thread.start()
    got = [await box.get() for _ in range(100)]
    thread.join()
    assert got == list(range(100))


async def test_waiting_can_be_cancelled():
    """A task that waits for nothing is freed by its scope, and the box still works."""
    box: Mailbox[str] = Mailbox()
    with anyio.move_on_after(0.01) as scope:
        await box.get()
    assert scope.cancelled_caught
    box.put("late")
    assert await box.get() == "late"


def test_a_loop_that_ended_swallows_what_comes(anyio_backend_name):
    """The thread is not hurt by a caller that is gone."""

    async def make() -> Mailbox[int]:
        return Mailbox()

    box = anyio.run(make, backend=anyio_backend_name)
    box.put(1)
