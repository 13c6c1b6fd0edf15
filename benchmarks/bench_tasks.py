"""A tree of trivial tasks in memory, beside bare anyio task groups of the same shape."""

import argparse
import time

import anyio

from benchmarks import row
from treering.events.catalogue import Limits, RunConfig
from treering.events.in_memory import InMemoryStore
from treering.runtime.runner import Runner, create_run
from treering.runtime.task import Task


async def node(task: Task, goal: str, width: int, levels: int) -> int:
    """Spawn a level and take its results."""
    if levels:
        await task.gather(*[task.spawn(node, "", width=width, levels=levels - 1) for _ in range(width)])
    return 0


async def bare(width: int, levels: int) -> None:
    """The same shape with nothing recorded."""
    if levels:
        async with anyio.create_task_group() as group:
            for _ in range(width):
                group.start_soon(bare, width, levels - 1)


async def _ours(width: int) -> None:
    store = InMemoryStore()
    run = create_run(store, RunConfig("node", limits=Limits(9, 1000, 1 << 30)))
    async with Runner(store, run, agents={"node": node}) as runner:
        outcome = await runner.ask("", {"width": width, "levels": 3})
    assert outcome.status == "finished", outcome.error


def main(width: int = 46) -> None:
    """Measure and print."""
    tasks = width + width**2 + width**3
    start = time.process_time()
    anyio.run(bare, width, 3)
    floor = time.process_time() - start
    start = time.process_time()
    anyio.run(_ours, width)
    used = time.process_time() - start
    row(f"{tasks} tasks as a tree", f"{used:.2f} s CPU", f"{floor:.2f} s CPU", used / floor, 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=46)
    main(parser.parse_args().width)
