"""The memories that a view holds, as masks over all of a run's memories.

Owns a numbering of memories (rows) and, for each version of the trunk, which turned hot or cold then. A cache of
the folded state that follows it in steps proportional to what is new. Invariant: a mask says of each row what
`Hierarchy.state` says of its memory.
"""

from array import array

import numpy as np
from numpy.typing import NDArray

from treering.memory.hierarchy import TRUNK, Hierarchy, View
from treering.memory.ranking import Mask

__all__ = ["Rows", "ViewedMemories"]

Rows = NDArray[np.int64]


class ViewedMemories:
    """Follows one run's hierarchy. `ids` names the memory of each row."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._turned = array("q")
        self._tasks: dict[str, int] = {}
        self._places = array("q")
        self._order: Rows = np.zeros(0, np.int64)

    def follow(self, hierarchy: Hierarchy) -> list[str]:
        """Take in what is new in the hierarchy; ids of the memories that got the next rows."""
        new: list[str] = []
        for id in reversed(hierarchy.memories):  # newest first
            if id in self._rows:
                break
            new.append(id)
        new.reverse()
        for id in new:
            self._rows[id] = len(self.ids)
            self.ids.append(id)
            writes = hierarchy.memories[id].writes
            self._places.append(self._place(writes[0].task, writes[0].op))
        for id in hierarchy.turns[len(self._turned) :]:
            self._turned.append(self._rows[id] if id else -1)
        return new

    def masks(self, hierarchy: Hierarchy, view: View) -> tuple[Mask, Mask]:
        """The rows that are hot in this view, and those that it holds at all."""
        count = len(self.ids)
        hot, seen = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        for scope, version in view:
            if scope == TRUNK:
                turned = _array(self._turned)[:version]
                turns = np.bincount(turned[turned >= 0], minlength=count)
                hot |= turns % 2 == 1
                seen |= turns > 0
            else:
                rows = [self._rows[id] for id in hierarchy.own(scope, version)]
                hot[rows] = True
                seen[rows] = True
        return hot, seen

    def sequences(self, hierarchy: Hierarchy, view: View, seen: Mask) -> tuple[Rows, Rows]:
        """The rows that a view holds, task by task in the order of writing, and a number for the task of each."""
        places = _array(self._places)
        shared = [id for id in hierarchy.shared if seen[self._rows[id]]]
        if shared:  # of what several tasks wrote, the view says whose it is
            places = places.copy()
            for id in shared:
                first = hierarchy.written(id, view)[0]
                places[self._rows[id]] = self._place(first.task, first.op)
            order = np.argsort(places, kind="stable")
        else:
            if len(self._order) != len(places):
                self._order = np.argsort(places, kind="stable")
            order = self._order
        rows = order[seen[order]]
        return rows, places[rows] >> 32

    def _place(self, task: str, op: int) -> int:
        return self._tasks.setdefault(task, len(self._tasks)) << 32 | op


def _array(numbers: "array[int]") -> Rows:
    """A view on them, not to be kept while they grow."""
    return np.frombuffer(numbers, np.int64) if numbers else np.zeros(0, np.int64)
