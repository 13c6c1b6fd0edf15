"""A holder that is only stopped, and one that takes over meanwhile."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from treering.events.catalogue import Header, RunConfig
from treering.events.codec import body_digest, encode, verify_chain
from treering.events.errors import StoreError
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import create_run

ROUNDS = 50
HOLDER = """
    import itertools, sys, time
    from treering.events.catalogue import Header
    from treering.events.codec import encode, body_digest
    from treering.events.errors import LeaseLost
    from treering.events.sqlite import SQLiteStore
    store = SQLiteStore(sys.argv[1])
    run = store.runs()[-1].run
    lease = store.acquire(run)
    seq, digest = store.head(run)
    print("held", flush=True)
    try:
        for seq in itertools.count(seq + 1):
            body, salt = b'{"what":"now","value":1}', b"s" * 16
            record = encode(Header(run, seq, "Sampled", 0, body_digest(salt, body), "1", 1), body, salt, digest)
            store.append(run, lease.epoch, [record])
            digest = record.digest
            time.sleep(0.002)
            if seq % 20 == 0:
                print(seq, flush=True)
    except LeaseLost:
        print("lost", flush=True)
        sys.exit(9)
"""


def _take_over_stopped(store, run, pid):
    """Stop the holder and take its run over. Stopped inside a transaction it keeps SQLite's lock: let it go on."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            return store.acquire(run, take_over=True)
        except StoreError as error:
            assert "locked" in str(error)  # noqa: PT017
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.001)


def test_a_writer_that_was_stopped_cannot_append_after_another_took_over(tmp_path):
    """SIGSTOP, take over, append, SIGCONT: the old writer's next append is refused, and no event is doubled."""
    path = tmp_path / "log.db"
    store = SQLiteStore(path, busy_timeout_s=0.2)
    program = textwrap.dedent(HOLDER)
    for _ in range(ROUNDS):
        run = create_run(store, RunConfig("none"))
        holder = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.stdout.readline()
        lease = _take_over_stopped(store, run, holder.pid)
        seq, digest = store.head(run)
        body, salt = b'{"epoch":2,"config":{"agent":"none"}}', b"t" * 16
        mine = encode(Header(run, seq + 1, "RunResumed", 0, body_digest(salt, body)), body, salt, digest)
        store.append(run, lease.epoch, [mine])
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(timeout=30) == 9
        holder.stdout.close()
        assert store.head(run) == (seq + 1, mine.digest)
        assert verify_chain(store.read(run)) == seq + 1
        lease.release()
    store.close()
