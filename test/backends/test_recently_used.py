"""The bounded cache of graphs and compiled networks."""

from __future__ import annotations

import pytest

from isfl_ros.backends.recently_used import RecentlyUsed


def test_keeps_the_last_few_and_makes_each_once():
    made = []
    kept = RecentlyUsed(2, lambda key: made.append(key) or key * 10)
    assert [kept[key] for key in (1, 2, 1, 2)] == [10, 20, 10, 20] and made == [1, 2]
    assert kept[1] == 10 and kept[3] == 30, "1 was used after 2, so 2 goes"
    assert kept.keys() == [1, 3] and made == [1, 2, 3]
    assert kept[2] == 20 and made == [1, 2, 3, 2]


def test_room_is_made_before_something_new_is():
    kept = RecentlyUsed(1, lambda key: len(kept.keys()))
    assert kept["a"] == 0 and kept["b"] == 0


def test_what_could_not_be_made_is_not_kept():
    kept = RecentlyUsed(2, lambda key: 1 / key)
    with pytest.raises(ZeroDivisionError):
        kept[0]
    assert kept.keys() == [] and kept[2] == 0.5
    kept.clear()
    assert kept.keys() == []
