"""`kill -9` of `treering run` at random moments, then `resume`: does it end, and was anything paid for twice?

`python -m benchmarks.kills [--rounds 10] [--model embedded]`. Each round starts a `digest` of a part of Python's
language reference, kills the process after a random time, resumes it until it ends, and checks that the chain
holds and that no op whose outcome was on disk at a kill was called again afterwards.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from treering.events.codec import decode, verify_chain
from treering.events.log import find_run
from treering.events.sqlite import SQLiteStore
from treering.tools.inputs import python_reference

__all__ = ["main"]

PROGRAM = [sys.executable, "-m", "treering.cli.main"]


def main() -> int:
    """Run the rounds and print a row each; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--characters", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    failed = 0
    for number in range(1, given.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            found = one_round(Path(folder), given.model, given.characters, chance)
        failed += not found["ok"]
        print(json.dumps({"round": number, **found}), flush=True)
    print(f"{given.rounds - failed} of {given.rounds} rounds ended with the chain intact and nothing paid twice")
    return int(failed > 0)


def one_round(folder: Path, model: str, characters: int, chance: random.Random) -> dict[str, object]:
    """Start, kill, resume until it ends; what was seen."""
    text = folder / "part.txt"
    text.write_text(python_reference()[20_000 : 20_000 + characters])
    store = folder / "log.db"
    ends = ["--model", model, "--store", str(store)]
    started = time.monotonic()
    begin = [*PROGRAM, "run", "Shorten this", "--agent", "digest", "--window", "600", "--input", str(text), *ends]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(begin, **quiet)  # type: ignore[call-overload]
    kills = 0
    deaths: list[tuple[int, set[tuple[str, int]]]] = []
    while True:
        try:
            process.wait(timeout=chance.uniform(4.0, 20.0) if kills < 3 else 600.0)
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        log = SQLiteStore(store)
        if not log.runs():
            log.close()  # it died while the model was loaded: there is nothing to resume yet
            process = subprocess.Popen(begin, **quiet)  # type: ignore[call-overload]
            continue
        run = find_run(log, "last").run
        paid = {(h.task, h.op) for h in (decode(r).header for r in log.read(run, kinds=["ModelReplied"]))}
        deaths.append((log.head(run)[0], paid))
        log.close()
        process = subprocess.Popen([*PROGRAM, "resume", "last", "--store", str(store)], **quiet)  # type: ignore[call-overload]
    log = SQLiteStore(store)
    run = find_run(log, "last").run
    events = verify_chain(log.read(run))
    replies = [(h.task, h.op) for h in (decode(r).header for r in log.read(run, kinds=["ModelReplied"]))]
    again = [key for seq, paid in deaths for key in _called_after(log, run, seq) if key in paid]
    log.close()
    ok = process.returncode == 0 and not again and len(replies) == len(set(replies))
    return {
        "ok": ok,
        "kills": kills,
        "events": events,
        "replies": len(replies),
        "paid_again": len(again),
        "seconds": round(time.monotonic() - started, 1),
    }


def _called_after(log: SQLiteStore, run: str, seq: int) -> list[tuple[str, int]]:
    headers = (decode(record).header for record in log.read(run, after=seq, kinds=["ModelCalled"]))
    return [(header.task, header.op) for header in headers]


if __name__ == "__main__":
    sys.exit(main())
