"""The order in which waiting trainings get a place: priority, then fair share between users, then first come.

Within one priority a training's level is what its user has running, plus those of the user that stand ahead of it. The
order is that of (priority descending, level, acceptance): each place goes to the user who then has the fewest, and
among equals to who waits longest. So a rank can be counted per user, without sorting anything.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A training that waits for a place.

    Attributes:
        training_id: Its identity.
        user: Whose it is.
        priority: A higher one goes first.
        position: Order of acceptance; a retried training keeps its own.
        needs: What it needs of a place; those with equal needs compete for the same places.
    """

    training_id: str
    user: str
    priority: int
    position: int
    needs: Hashable


_Key = tuple[int, str]  # position and, should two be equal, the id
_BEFORE_ALL: _Key = (-1, "")


class WaitingLine:
    """Waiting trainings and who of them goes first. In memory; each change costs the same however many wait."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._all = _Lane()
        self._by_needs: dict[Hashable, _Lane] = {}
        self._running: dict[str, int] = {}
        self._order: list[Waiting] | None = None
        self._positions: dict[str, int] | None = None
        self._num_counted = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, training_id: str) -> bool:
        return training_id in self._waiting

    def add(self, waiting: Waiting) -> None:
        """Let a training wait; one that waits already is replaced."""
        self.remove(waiting.training_id)
        self._waiting[waiting.training_id] = waiting
        self._all.add(waiting)
        self._by_needs.setdefault(waiting.needs, _Lane()).add(waiting)
        self._forget_order()

    def remove(self, training_id: str) -> None:
        """Let a training wait no longer; one that does not wait is ignored."""
        waiting = self._waiting.pop(training_id, None)
        if waiting is None:
            return
        self._all.remove(waiting)
        lane = self._by_needs[waiting.needs]
        lane.remove(waiting)
        if not lane.by_priority:
            del self._by_needs[waiting.needs]
        self._forget_order()

    def order(self, running_by_user: Mapping[str, int]) -> list[Waiting]:
        """Return all that wait, who goes first in front; do not change the list.

        Args:
            running_by_user: How many trainings of each user have a place.
        """
        self._learn_running(running_by_user)
        if self._order is None:
            self._order = list(self.walk(running_by_user))
        return self._order

    def walk(self, running_by_user: Mapping[str, int], blocked: Set[Hashable] = frozenset()) -> Iterator[Waiting]:
        """Yield who goes next, as if trainings whose needs are in `blocked` did not wait.

        The caller adds to `blocked` what has no place, and removes from the line what got one, while it walks: a
        training whose needs it blocks counts as not yielded, any other as placed. Blocked trainings cost nothing.
        What is added to the line meanwhile may be missed.

        Args:
            running_by_user: How many trainings of each user have a place, when the walk begins.
            blocked: Needs that no place satisfies now.
        """
        self._learn_running(running_by_user)
        levels = dict(running_by_user)
        for priority in sorted(self._all.by_priority, reverse=True):
            lanes = [
                (needs, users) for needs, lane in self._by_needs.items() if (users := lane.by_priority.get(priority))
            ]
            heap = [
                (levels.get(user, 0), key, user)
                for user in {user for needs, users in lanes if needs not in blocked for user in users}
                if (key := _first_after(_BEFORE_ALL, user, lanes, blocked)) is not None
            ]
            heapq.heapify(heap)
            while heap:
                level, key, user = heap[0]
                waiting = self._waiting.get(key[1])
                if waiting is not None and _key_of(waiting) == key and waiting.needs not in blocked:
                    yield waiting
                    if waiting.needs not in blocked:
                        level = levels[user] = level + 1
                following = _first_after(key, user, lanes, blocked)
                if following is None:
                    heapq.heappop(heap)
                else:
                    heapq.heapreplace(heap, (level, following, user))

    def position_of(self, training_id: str) -> int | None:
        """Return the place in the order, from 1, by the running trainings that `order` or `walk` were last told;
        None if it does not wait."""
        waiting = self._waiting.get(training_id)
        if waiting is None:
            return None
        if self._positions is None:
            # Counting looks at each user. Once that has cost as much as a look at everyone, make the whole order.
            self._num_counted += self._all.num_users(waiting.priority)
            if self._num_counted < len(self._waiting):
                return self._all.count_ahead(waiting, self._running) + 1
            ordered = self.order(self._running)
            self._positions = {each.training_id: position for position, each in enumerate(ordered, start=1)}
        return self._positions[training_id]

    def position_among_equals(self, training_id: str) -> int | None:
        """Return the place, from 1, among those that compete for the same places; None if it does not wait."""
        waiting = self._waiting.get(training_id)
        return None if waiting is None else self._by_needs[waiting.needs].count_ahead(waiting, self._running) + 1

    def _learn_running(self, running_by_user: Mapping[str, int]) -> None:
        if running_by_user != self._running:
            self._running = dict(running_by_user)
            self._forget_order()

    def _forget_order(self) -> None:
        self._order = None
        self._positions = None
        self._num_counted = 0


class _Lane:
    """Keys of those who wait: by priority and user, each list in order of acceptance."""

    def __init__(self) -> None:
        self.by_priority: dict[int, dict[str, list[_Key]]] = {}

    def add(self, waiting: Waiting) -> None:
        users = self.by_priority.setdefault(waiting.priority, {})
        insort(users.setdefault(waiting.user, []), _key_of(waiting))

    def remove(self, waiting: Waiting) -> None:
        users = self.by_priority[waiting.priority]
        keys = users[waiting.user]
        del keys[bisect_left(keys, _key_of(waiting))]
        if not keys:
            del users[waiting.user]
        if not users:
            del self.by_priority[waiting.priority]

    def num_users(self, priority: int) -> int:
        return len(self.by_priority[priority])

    def count_ahead(self, waiting: Waiting, running_by_user: Mapping[str, int]) -> int:
        """Return how many of the lane go before one of it."""
        above = [users for priority, users in self.by_priority.items() if priority > waiting.priority]
        users = self.by_priority[waiting.priority]
        bases = {
            user: running_by_user.get(user, 0) + sum(len(each[user]) for each in above if user in each)
            for user in users
        }
        key = _key_of(waiting)
        level = bases[waiting.user] + bisect_left(users[waiting.user], key)
        num_ahead = sum(len(keys) for each in above for keys in each.values())
        for user, keys in users.items():
            num_below = min(max(level - bases[user], 0), len(keys))
            num_ahead += num_below
            if num_below == level - bases[user] < len(keys) and keys[num_below] < key:
                num_ahead += 1
        return num_ahead


def _key_of(waiting: Waiting) -> _Key:
    return (waiting.position, waiting.training_id)


def _first_after(
    key: _Key, user: str, lanes: Iterable[tuple[Hashable, Mapping[str, list[_Key]]]], blocked: Set[Hashable]
) -> _Key | None:
    """Return a user's first key behind `key`, of needs that are not blocked."""
    first: _Key | None = None
    for needs, users in lanes:
        keys = users.get(user)
        if keys is None or needs in blocked:
            continue
        index = bisect_right(keys, key)
        if index < len(keys) and (first is None or keys[index] < first):
            first = keys[index]
    return first
