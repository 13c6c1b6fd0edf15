"""The retention policies once more, as plainly as their rules can be written: lists, and no thought of speed.

Each holds `hot`, a list of items in the order that its rule speaks of, and answers `evict(clock)`: the id that
goes now, or None. What is larger than the size goes first, whatever the rule.
"""

from dataclasses import dataclass, field
from hashlib import blake2b

PASSED = 64


@dataclass(eq=False)
class Item:
    id: str
    tokens: int
    created: int
    accessed: int
    count: int = 1
    used: int = 0


@dataclass(eq=False)
class Plain:
    size: int
    hot: list[Item] = field(default_factory=list)
    newest: str = ""

    def find(self, id):
        return next((item for item in self.hot if item.id == id), None)

    def add(self, id, tokens, clock):
        self.hot.append(Item(id, tokens, clock, clock))
        if tokens <= self.size:
            self.newest = id

    def access(self, id, clock):
        if (item := self.find(id)) is not None:
            self.use(item, clock)

    def use(self, item, clock):
        item.accessed, item.count = clock, item.count + 1

    def remove(self, id):
        if (item := self.find(id)) is not None:
            self.hot.remove(item)

    def full(self):
        return sum(item.tokens for item in self.hot if item.tokens <= self.size) > self.size

    def evict(self, clock):
        for item in self.hot:
            if item.tokens > self.size:
                self.hot.remove(item)
                return item.id
        if not self.full():
            return None
        item = self.choose(clock)
        self.hot.remove(item)
        return item.id

    def choose(self, clock):
        raise NotImplementedError


class None_(Plain):
    def evict(self, clock):
        return None


class Window(Plain):
    def evict(self, clock):
        for item in sorted(self.hot, key=lambda item: item.accessed):
            if clock - item.accessed > self.size:
                self.hot.remove(item)
                return item.id
        return None

    def use(self, item, clock):
        super().use(item, clock)
        self.hot.remove(item)
        self.hot.append(item)


class Lru(Plain):
    def use(self, item, clock):
        super().use(item, clock)
        self.hot.remove(item)
        self.hot.append(item)

    def choose(self, clock):
        return next(item for item in self.hot if item.tokens <= self.size)


@dataclass(eq=False)
class Sieve(Plain):
    """The queue of the paper from tail to head, with a hand that points at an item, or at None: the tail."""

    hand: Item | None = None

    def use(self, item, clock):
        item.used = 1

    def after(self, item):
        queue = [other for other in self.hot if other.tokens <= self.size]
        place = queue.index(item) + 1
        return queue[place] if place < len(queue) else None

    def remove(self, id):
        item = self.find(id)
        if item is not None and item is self.hand:
            self.hand = self.after(item)
        super().remove(id)

    def choose(self, clock):
        tail = next(item for item in self.hot if item.tokens <= self.size)
        at = self.hand or tail
        if at.id == self.newest:
            at = tail
        for _ in range(PASSED):
            if not at.used:
                break
            at.used = 0
            at = self.after(at) or tail
            if at.id == self.newest:
                at = tail
        self.hand = self.after(at)
        if self.hand is not None and self.hand.id == self.newest:
            self.hand = None
        return at


@dataclass(eq=False)
class S3Fifo(Plain):
    """`hot` in the order of arrival; `main` and `ghost` name what is there, oldest first."""

    main: list[Item] = field(default_factory=list)
    ghost: list[tuple[str, int]] = field(default_factory=list)

    def share(self):
        return max(1, self.size // 10)

    def use(self, item, clock):
        item.used = min(3, item.used + 1)

    def small(self):
        return [item for item in self.hot if item.tokens <= self.size and item not in self.main]

    def add(self, id, tokens, clock):
        super().add(id, tokens, clock)
        if tokens <= self.size and any(ghost[0] == id for ghost in self.ghost):
            self.ghost = [ghost for ghost in self.ghost if ghost[0] != id]
            self.main.append(self.hot[-1])

    def remember(self, item):
        self.ghost.append((item.id, item.tokens))
        for _ in range(2):
            if sum(tokens for _, tokens in self.ghost) > self.size - self.share():
                self.ghost.pop(0)

    def remove(self, id):
        item = self.find(id)
        if item is not None and item.tokens <= self.size:
            self.remember(item)
            self.main = [other for other in self.main if other.id != id]
        super().remove(id)

    def choose(self, clock):
        passed = 0
        while True:
            in_small = sum(item.tokens for item in self.small())
            small = [item for item in self.small() if item.id != self.newest]
            main = [item for item in self.main if item.id != self.newest]
            if small and (in_small > self.share() or not main):
                if small[0].used <= 1 or passed == PASSED:
                    self.remember(small[0])
                    return small[0]
                small[0].used = 0
                self.main.append(small[0])
            else:
                item = main[0]
                self.main.remove(item)
                if item.used == 0 or passed == PASSED:
                    return item
                item.used -= 1
                self.main.append(item)
            passed += 1


@dataclass(eq=False)
class Activation(Plain):
    """`places` is the table that is drawn from: who leaves gives its place to the last."""

    places: list[Item] = field(default_factory=list)
    held: dict[str, Item] = field(default_factory=dict)
    evictions: int = 0

    def add(self, id, tokens, clock):
        item = self.held.pop(id, None) if tokens <= self.size else None
        self.hot.append(item or Item(id, tokens, clock, clock))
        if tokens <= self.size:
            self.newest = id
            self.places.append(self.hot[-1])

    def leave(self, item):
        if item in self.places:
            place, last = self.places.index(item), self.places.pop()
            if last is not item:
                self.places[place] = last

    def remove(self, id):
        item = self.find(id)
        if item is not None and item.tokens <= self.size:
            self.leave(item)
            self.held[id] = item
        super().remove(id)

    def evict(self, clock):
        id = super().evict(clock)
        self.evictions += id is not None
        return id

    def choose(self, clock):
        def strength(item):
            age, life = clock - item.accessed + 1, clock - item.created + 1
            return age**-0.5 + 2 * (item.count - 1) / (life**0.5 + age**0.5)

        item = min((self.places[place] for place in self.drawn()), key=strength)
        self.leave(item)
        return item

    def drawn(self):
        count = len(self.places) - (self.places[-1].id == self.newest)
        if count <= 8:
            return range(count)
        digest = blake2b(f"7 {self.evictions}".encode()).digest()
        taken = []
        for number in range(8):
            top = count - 8 + number
            place = int.from_bytes(digest[8 * number : 8 * number + 8], "little") % (top + 1)
            taken.append(top if place in taken else place)
        return taken


PLAIN = {
    "none": None_,
    "window": Window,
    "lru": Lru,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "actr": Activation,
}
