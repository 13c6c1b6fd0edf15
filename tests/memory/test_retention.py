"""One suite over all retention policies, each beside the same rule written plainly."""

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.events.errors import UsageError
from treering.memory.queues import Sized, from_plain, to_plain
from treering.memory.retention import POLICIES, KeepAll, KeepWhileUsed, Policy, parse_retention

sys.path.insert(0, str(Path(__file__).parent))

from plain_policies import PLAIN

SIZED = ["lru", "sieve", "s3fifo", "actr"]
IDS = [f"m{number}" for number in range(14)]
TOKENS = {id: 1 + number * number % 11 for number, id in enumerate(IDS)} | {"m13": 40}
"""Of many sizes; the last is larger than most memories of the test."""

USES = st.tuples(st.just("use"), st.sampled_from(IDS))
OPS = st.lists(
    st.one_of(
        USES,
        USES,
        USES,
        st.tuples(st.just("hold"), st.sampled_from(IDS)),
        st.tuples(st.just("free"), st.sampled_from(IDS)),
        st.tuples(st.just("save"), st.none()),
    ),
    max_size=120,
)


def _saved(policy):
    return msgspec.msgpack.encode(policy, enc_hook=to_plain)


def _fresh(policy):
    """The same policy out of a snapshot, as the fold loads it."""
    return msgspec.msgpack.decode(_saved(policy), type=Policy, dec_hook=from_plain)


class Both:
    """A policy and its plain double through the same life: what a memory hierarchy would ask of them."""

    def __init__(self, name: str, size: int) -> None:
        self.policy = parse_retention(name if name == "none" else f"{name}:{size}", seed=7)
        self.plain = PLAIN[name](size)
        self.hot: set[str] = set()
        self.held: set[str] = set()
        self.clock = 0
        self.evicted: list[str] = []

    def step(self, what: str, id: str) -> None:
        self.clock += 1
        if what == "use" and id in self.hot:
            assert self.policy.access(id, self.clock) is not isinstance(self.policy, KeepAll)
            self.plain.access(id, self.clock)
        elif what == "use" and id not in self.held:
            assert not self.policy.access(id, self.clock)
            self.enter(id)
        elif what == "hold" and id in self.hot:
            self.hot.remove(id)
            self.held.add(id)
            self.policy.remove(id)
            self.plain.remove(id)
        elif what == "free" and id in self.held:
            self.held.remove(id)
            self.enter(id)
            self.policy.access(id, self.clock)
            self.plain.access(id, self.clock)
        elif what == "save":
            self.policy = _fresh(self.policy)
        self.evict()

    def enter(self, id: str) -> None:
        self.hot.add(id)
        self.policy.add(id, TOKENS[id], self.clock)
        self.plain.add(id, TOKENS[id], self.clock)

    def evict(self) -> None:
        while True:
            before = _saved(self.policy)
            victim = self.policy.victim(self.clock)
            assert _saved(self.policy) == before, "asking for a victim changed the policy"
            assert victim == self.plain.evict(self.clock)
            if victim is None:
                return
            assert victim in self.hot
            assert self.policy.reason(victim, 3)
            self.policy.evict(victim)
            self.hot.remove(victim)
            self.evicted.append(victim)


@pytest.mark.parametrize("name", sorted(PLAIN))
@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 45), ops=OPS)
def test_a_policy_is_its_rule(name, size, ops):
    """The same victims in the same order as the plain rule, from any snapshot, and nothing over the size stays."""
    both = Both(name, size)
    for what, id in ops:
        both.step(what, id)
        if name in SIZED:
            assert both.policy.tokens == sum(TOKENS[id] for id in both.hot) <= size
        assert not both.held & both.hot
    assert {item.id for item in both.plain.hot} == both.hot


@pytest.mark.parametrize("name", ["sieve", "s3fifo"])
def test_a_policy_is_its_rule_where_many_were_used(name):
    """Also where an eviction has more to pass over than it may."""
    both = Both(name, 120)
    TOKENS.update({f"n{number}": 1 for number in range(500)})
    for turn in range(500):
        both.step("use", f"n{turn}")
        for back in (1, 2, 5, 70, 100, 115):
            for _ in range(2):
                both.step("use", f"n{max(0, turn - back)}")
    assert len(both.evicted) > 300


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_what_was_never_there_is_left_alone(name):
    """A memory that the policy does not hold can be accessed, removed and evicted: a log may come from other rules."""
    policy = parse_retention("none" if name == "none" else f"{name}:5")
    policy.add("a", 3, 1)
    before = _saved(policy)
    assert not policy.access("b", 2)
    policy.remove("b")
    assert _saved(policy) == before
    policy.evict("b")
    assert policy.victim(2) is None
    policy.evict("a")
    policy.evict("a")
    assert policy.victim(99) is None


@pytest.mark.parametrize("name", SIZED)
def test_a_memory_larger_than_all_goes_alone(name):
    """It goes cold at once and pushes nothing out; one that fits exactly stays."""
    policy = parse_retention(f"{name}:10")
    policy.add("a", 4, 1)
    policy.add("huge", 11, 2)
    assert policy.access("huge", 2)
    assert policy.victim(2) == "huge"
    assert "larger than the 10 tokens" in policy.reason("huge", 0)
    policy = _fresh(policy)
    policy.evict("huge")
    assert policy.victim(3) is None
    policy.add("exact", 10, 4)
    assert policy.victim(4) == "a"
    policy.evict("a")
    assert policy.victim(5) is None


def _lines_of(function, *arguments):
    """How many lines of the policies one call executes, calls below it included."""
    count = 0
    where = {sys.modules[kind.__module__].__file__ for kind in (*Policy.__args__, Sized)}

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in where:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = function(*arguments)
    finally:
        sys.settrace(before)
    return count, result


def _most_lines(name: str, items: int, used: int) -> dict[str, int]:
    """The longest of many calls, by method, in a full memory of `items` in which each was used `used` times."""
    policy = parse_retention("none" if name == "none" else f"{name}:{items}", seed=1)
    clock = 0
    for number in range(items):
        clock += 1
        policy.add(str(number), 1, clock)
        for _ in range(used):
            policy.access(str(number), clock)
    most: dict[str, int] = {}

    def call(method: str, *arguments):
        lines, result = _lines_of(getattr(policy, method), *arguments)
        most[method] = max(most.get(method, 0), lines)
        return result

    for number in range(150):
        clock += items // 8
        call("access", str(number * 7 % items), clock)
        call("add", f"new {number}", 1, clock)
        if (victim := call("victim", clock)) is not None:
            call("evict", victim)
        call("remove", str(items - 1 - number))
        call("add", str(items - 1 - number), 1, clock)
    return most


@pytest.mark.parametrize("used", [0, 1, 3])
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_steps_do_not_grow_with_the_number_of_memories(name, used):
    """The longest access and the longest eviction take as many steps at 30,000 memories as at 600."""
    few, many = _most_lines(name, 600, used), _most_lines(name, 30_000, used)
    assert many.keys() == few.keys()
    assert all(many[method] <= few[method] + 5 for method in many), (few, many)
    assert max(many["access"], many["add"], many["remove"]) <= 25
    assert max(many.values()) <= 64 * 20


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_snapshot_of_a_snapshot_is_the_same(name):
    """What was used is in its new order there, to the last byte."""
    both = Both(name, 12)
    for number in range(200):
        both.step("use", IDS[number * number % 13 % (1 + number % 7)])
        assert _saved(_fresh(both.policy)) == _saved(both.policy)


def test_what_draws_draws_from_its_seed():
    """Equal seeds draw equally, others otherwise; nothing else has a say."""

    def life(seed):
        policy, gone = parse_retention("actr:50", seed), []
        for number in range(300):
            policy.add(str(number), 1, number)
            while (victim := policy.victim(number)) is not None:
                policy.evict(victim)
                gone.append(victim)
        return gone

    assert life(1) == life(1)
    assert life(1) != life(2)


def test_policies_are_named_or_refused():
    """A policy that is not known, or has no size, is one clear line."""
    assert parse_retention("window:50") == KeepWhileUsed(50)
    assert parse_retention("none") == KeepAll()
    for name in POLICIES:
        assert parse_retention(f"{name}:50").size == 50
        for size in ("", ":", ":0", ":-5", ":x", ":1.5", ":1e3", ": 5", ":٣", ":" + "9" * 5000):
            with pytest.raises(UsageError, match=r"expected a retention policy.*try window:10000"):
                parse_retention(name + size)
    for wrong in ("", "lfu:5", "none:1", "LRU:5", "\n", "window:5,lru:5", "x" * 10_000):
        with pytest.raises(UsageError, match="expected a retention policy") as found:
            parse_retention(wrong)
        assert len(str(found.value)) < 400
