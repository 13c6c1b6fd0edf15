"""The lab: what it replays is what ran, its optimum is one, and its figures are those of the published traces."""

import gzip
import lzma
import struct
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from laws import Steady, script

from treering.events.catalogue import Evicted, RunConfig
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.in_memory import InMemoryStore
from treering.memory.retention import parse_retention
from treering.replays import lab
from treering.replays.lab import examine, size_of
from treering.replays.optimum import optimum
from treering.replays.traces import ACCESS, END, WRITE, Trace, read_run, read_trace
from treering.runtime.prompts import Say
from treering.runtime.runner import Runner, create_run
from treering.runtime.task import Task
from treering.runtime.testing import ScriptedEngine

TRACES = Path(__file__).parents[2].parent / "shared" / "data" / "traces"
RULES = ["window:40", "lru:14", "sieve:14", "s3fifo:14", "actr:14", "none"]
EVERY = ["window", "lru", "sieve", "s3fifo", "actr", "none"]
KEYS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=14)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def no_clock() -> float:
    return 0.0


def of_keys(keys) -> Trace:
    return Trace("keys", list(keys), [], [(0, len(keys))], "blocks")


def of_steps(keys, tokens=lambda key: 1) -> Trace:
    """The same accesses as a run would record them: each is written once, then used."""
    steps, known = [], set()
    for clock, key in enumerate(keys, start=1):
        steps += [
            (ACCESS if key in known else WRITE, key, tokens(key), clock),
            (END, "", 0, clock),
            (END, "", 0, clock + 1),
        ]
        known.add(key)
    return Trace("steps", [], steps, [(0, len(steps))], "roots")


def best_of_all(keys, size: int) -> int:
    """The most hits that any choice of victims gives, by trying all."""

    @cache
    def hits(at: int, hot: frozenset) -> int:
        if at == len(keys):
            return 0
        if keys[at] in hot:
            return 1 + hits(at + 1, hot)
        if len(hot) < size:
            return hits(at + 1, hot | {keys[at]})
        return max(hits(at + 1, hot - {gone} | {keys[at]}) for gone in hot)

    return hits(0, frozenset())


@settings(max_examples=60, deadline=None)
@given(KEYS, st.integers(1, 5))
def test_the_optimum_is_the_best_of_all_choices(keys, size):
    """Belady's rule has the most hits there are, over keys and over the steps of a run; no policy has more."""
    assert optimum(of_keys(keys), size) == [best_of_all(tuple(keys), size)] == optimum(of_steps(keys), size)
    for rule in ("lru", "sieve", "s3fifo", "actr"):
        assert sum(lab._replay(of_keys(keys), parse_retention(f"{rule}:{size}")).hits) <= best_of_all(
            tuple(keys), size
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=80), st.sampled_from(EVERY[:-1]), st.integers(1, 8)
)
def test_keys_and_steps_are_replayed_alike(keys, rule, size):
    """A published trace and a run with the same accesses give the same hits and evictions."""
    policies = [parse_retention(f"{rule}:{size}") for _ in range(2)]
    one, other = lab._replay(of_keys(keys), policies[0]), lab._replay(of_steps(keys), policies[1])
    assert (one.hits, one.evicted) == (other.hits, other.evicted)


async def hoarder(task: Task, goal: str) -> int:
    """Remembers, recalls by rank and from children, pins, and lets its window hold what it was told."""
    for number in range(14):
        await task.remember(f"fact {number} of {goal} " + "and more " * (number % 4), pinned=number == 3)
        found = await task.recall(f"fact {number * 5 % 7}", 2)
        await task.generate(Say((f"{goal} {number} ", *found[:1])), max_tokens=4, keep=number % 3 == 0)
    await task.spawn(worker, goal)
    return 0


async def worker(task: Task, goal: str) -> int:
    for number in range(6):
        await task.recall(f"fact {number} of {goal}", 1)
        await task.remember(f"seen {number} of {goal}")
        await task.generate("go on", max_tokens=4)
    return 0


async def hoarding(rule: str) -> tuple[InMemoryStore, str]:
    store = InMemoryStore()
    config = RunConfig("hoarder", retention=rule, weights="scripted", template="words", overhead_tokens=2)
    run = create_run(store, config, Steady())
    agents = {"hoarder": hoarder, "worker": worker}
    async with Runner(store, run, ScriptedEngine(script), agents=agents) as runner:
        for goal in ("harbour", "mill", "tower"):
            outcome = await runner.ask(goal)
            assert outcome.status == "finished", outcome.error
    return store, run


@pytest.mark.parametrize("rule", RULES)
async def test_a_run_under_its_own_policy_evicts_what_it_evicted(rule):
    """The replay is the run: the same memories in the same order, at every size and after every hold and join."""
    store, run = await hoarding(rule)
    evicted = [stored.event.id for stored in map(decode, store.read(run)) if isinstance(stored.event, Evicted)]
    trace = read_run(run, store.read(run))
    assert trace.rule == rule
    assert len(trace.bounds) == 3
    assert lab._replay(trace, parse_retention(rule)).evicted == evicted
    assert (rule == "none") == (not evicted)


async def test_the_report_of_a_run():
    """Hits, regret, tokens over time, evictions; a choice, and how much it depends on the roots."""
    store, run = await hoarding("window:40")
    trace = read_run(run, store.read(run))
    report = examine(trace, ["window:40", *EVERY], 14, no_clock)
    again = examine(trace, ["window:40", *EVERY], 14, no_clock)
    assert report == again
    by_name = {one.policy.partition(":")[0]: one for one in report.policies}
    assert by_name["none"].hit_ratio == 1.0
    assert by_name["none"].evictions == 0
    assert not report.exact
    for name in ("lru", "sieve", "s3fifo", "actr"):
        assert 0 < by_name[name].hit_ratio < 1
        assert by_name[name].low <= by_name[name].hit_ratio <= by_name[name].high
    assert report.choice is not None
    assert report.choice.policy in report.choice.shares
    assert sum(report.choice.shares.values()) == pytest.approx(1)
    assert report.part_count == 3


def test_a_run_without_accesses_is_one_clear_line():
    """There is nothing to compare."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("hoarder"), Steady())
    with pytest.raises(UsageError, match="found none"):
        examine(read_run(run, store.read(run)), ["lru"], 5, no_clock)


@pytest.mark.parametrize("wanted", ["0", "0%", "", "%", "-1", "x", "1.5", "9" * 30])
def test_a_size_is_above_zero(wanted):
    """A number of tokens, or a share."""
    with pytest.raises(UsageError, match="expected a size"):
        size_of(of_keys("abc"), wanted)
    assert size_of(of_keys("abc"), "50%") == 1
    assert size_of(of_keys("abc"), "7") == 7


def test_the_readers_read_their_formats(tmp_path):
    """LIRS text with its marks, cache2k's integers, Mooncake's blocks."""
    (tmp_path / "a.trace.gz").write_bytes(gzip.compress(b"1\n2\n*\n1\n"))
    (tmp_path / "b.trace").write_text("7\n8\n")
    (tmp_path / "c.trace.xz").write_bytes(lzma.compress(struct.pack(">3i", 5, 70000, 5)))
    (tmp_path / "d.jsonl").write_text('{"timestamp": 0, "hash_ids": [0, 4]}\n{"hash_ids": [0]}\n')
    found = {path.name[0]: read_trace(path).keys for path in tmp_path.iterdir()}
    assert found == {"a": ["1", "2", "1"], "b": ["7", "8"], "c": ["5", "70000", "5"], "d": ["0", "4", "0"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none", None),
        ("empty.trace", b""),
        ("words.trace", b"one\n"),
        ("torn.trace.gz", gzip.compress(b"1\n2\n")[:-6]),
        ("torn.trace.xz", lzma.compress(b"12345678")[:-6]),
        ("odd.trace.xz", lzma.compress(b"123")),
        ("bad.jsonl", b'{"hash_ids": "x"}\n'),
        ("bytes.jsonl", b"\xff\xfe"),
    ],
)
def test_what_is_no_trace_is_one_clear_line(tmp_path, name, content):
    """Missing, empty, torn or of another kind."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="expected") as found:
        read_trace(tmp_path / name)
    assert "\n" not in str(found.value)


PUBLISHED = {
    "lirs/multi1.trace.gz": (15_858, 0.434, 0.527),
    "lirs/multi2.trace.gz": (26_311, 0.369, 0.549),
    "lirs/multi3.trace.gz": (30_241, 0.355, 0.529),
    "lirs/ps.trace.gz": (None, 0.163, 0.544),
    "lirs/cs.trace.gz": (None, 0.018, 0.101),
    "lirs/gli.trace.gz": (None, 0.009, 0.178),
    "lirs/cpp.trace.gz": (None, 0.757, 0.841),
    "cache2k/web07.trace.xz": (76_118, 0.557, 0.681),
}
"""Accesses, and hit ratios of LRU and Belady at a tenth of the distinct keys, computed by others."""


@pytest.mark.skipif(not TRACES.is_dir(), reason="the published traces are not on this machine")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hit_ratios(name):
    """Equal to the third digit. The long ones are checked by `python -m benchmarks.bench_traces`."""
    accesses, lru, belady = PUBLISHED[name]
    trace = read_trace(TRACES / name)
    assert accesses in (None, trace.accesses)
    size = size_of(trace, "10%")
    hits = sum(lab._replay(trace, parse_retention(f"lru:{size}")).hits)
    assert round(hits / trace.accesses, 3) == lru
    assert round(sum(optimum(trace, size)) / trace.accesses, 3) == belady


def test_the_report_is_plain(tmp_path):
    """It goes to JSON and back."""
    report = examine(of_keys("abcabcaab" * 20), EVERY, 2, no_clock)
    assert msgspec.json.decode(msgspec.json.encode(report), type=lab.Report) == report
