"""Take a recorded run's path again, on what its log holds: no model is called and nothing is written.

`python examples/replay.py [RUN]`, where the run was made. If the code has changed, it says where it asks otherwise.
"""

import os
import sys
from contextlib import closing

import anyio

from treering.events.errors import Divergence
from treering.events.log import find_run
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import Runner


async def main(name: str) -> None:
    with closing(SQLiteStore(os.environ.get("TREERING_STORE", ".treering/treering.db"))) as store:
        run = find_run(store, name).run
        async with Runner(store, run, replay=True) as runner:
            for outcome in await runner.replay():
                print(f"{outcome.path} {outcome.status}: {outcome.result}")


if __name__ == "__main__":
    try:
        anyio.run(main, sys.argv[1] if sys.argv[1:] else "last")
    except Divergence as error:
        sys.exit(f"the code takes another path: {error}")
