"""A few things that are dear to make, one for each key, the one not used for longest given up first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """Makes what is asked for and keeps the last few. Room is made before something new is: both may not fit.

    Args:
        capacity: how many are kept, at least 1.
        make: called with the key; what it raises is passed on and nothing is kept for that key.
    """

    def __init__(self, capacity: int, make: Callable[[K], V]):
        self._capacity = capacity
        self._make = make
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __getitem__(self, key: K) -> V:
        if key not in self._kept:
            while len(self._kept) >= self._capacity:
                self._kept.popitem(last=False)
            self._kept[key] = self._make(key)
        self._kept.move_to_end(key)
        return self._kept[key]

    def keys(self) -> list[K]:
        """Longest unused first."""
        return list(self._kept)

    def clear(self) -> None:
        """Gives everything up."""
        self._kept.clear()
