"""Schedules: what is trained, watched, cancelled and broken, and when; all of it drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SERVICES = ("backend", "a", "b")
TRAINERS = ("a", "b")
NETWORKS = ("clients", "trainers", "a", "b")
"""The networks a schedule breaks: clients to backend, trainers to backend, backend to each trainer."""

_WINDOW_S = 4.0
_FILE_LIMITS_BYTES = (0, 4_096, 65_536)


class Recipe(StrEnum):
    """What is trained; `tests.chaos.recipes` says how."""

    QUICK = "quick"
    MEDIUM = "medium"
    LONG = "long"
    LSTM = "lstm"
    PAIR = "pair"
    FOLDS = "folds"
    DEGENERATE = "degenerate"


class Kind(StrEnum):
    """What an action does to its target, for as long as it says."""

    KILL = "kill"  # a service by SIGKILL; it is started again
    STOP = "stop"  # a service by SIGTERM; it is started again
    HURRY = "hurry"  # a service by two SIGTERMs; it is started again
    FREEZE = "freeze"  # a service by SIGSTOP, then SIGCONT
    KILL_WORKER = "kill-worker"
    FREEZE_WORKER = "freeze-worker"
    CUT = "cut"
    PAUSE = "pause"
    SLOW = "slow"
    FILL_DISK = "fill-disk"
    DRAIN = "drain"
    TRAIN_AGAIN = "train-again"  # the same Train, late
    TRAIN_OTHERWISE = "train-otherwise"  # its request_id, other content
    CANCEL_LATE = "cancel-late"  # one more cancel, maybe of what has ended


@dataclass(frozen=True, kw_only=True)
class CancelPlan:
    """A cancel, `after_s` after the training was accepted; before its Train if that is negative."""

    after_s: float
    save_checkpoint: bool
    by_request_id: bool
    num_times: int

    def __str__(self) -> str:
        when = "before its Train" if self.after_s < 0 else f"after {self.after_s:.2f} s"
        how = " with checkpoint" if self.save_checkpoint else ""
        by = " by request_id" if self.by_request_id else ""
        return f"cancel{how}{by} {when} x{self.num_times}"


@dataclass(frozen=True, kw_only=True)
class WatcherPlan:
    """A watcher that begins `begin_s` after the training was accepted.

    Attributes:
        stuck_after: It stops reading after so many events, for `stuck_s`; None: never.
        stuck_s: How long.
    """

    begin_s: float
    stuck_after: int | None
    stuck_s: float

    def __str__(self) -> str:
        stuck = "" if self.stuck_after is None else f", stuck {self.stuck_s:.1f} s after {self.stuck_after} events"
        return f"watch from {self.begin_s:.2f} s{stuck}"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training, asked for at `at_s`.

    Attributes:
        num_requests: How many equal Train calls are made at once.
        num_stuck: Watchers that never read.
    """

    name: str
    at_s: float
    recipe: Recipe
    mode: str
    user: str
    priority: int
    may_retry: bool
    num_requests: int
    watchers: tuple[WatcherPlan, ...]
    num_stuck: int
    cancel: CancelPlan | None

    @property
    def is_cancelled_before(self) -> bool:
        return self.cancel is not None and self.cancel.after_s < 0

    def __str__(self) -> str:
        words = [
            f"{self.at_s:5.2f} s  train {self.name}: {self.recipe} {self.mode}",
            f"user {self.user or '-'} priority {self.priority}",
            "retries" if self.may_retry else "no retries",
        ]
        if self.num_requests > 1:
            words.append(f"x{self.num_requests}")
        words += [f"({watcher})" for watcher in self.watchers]
        if self.num_stuck:
            words.append(f"({self.num_stuck} never read)")
        if self.cancel is not None:
            words.append(f"[{self.cancel}]")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something that goes wrong at `at_s`, for `for_s`.

    Attributes:
        target: A service, a network or a training.
        number: Which worker, how many bytes a file may have, how many bytes a second pass; by kind.
        latency_s: Of a slow network.
    """

    at_s: float
    kind: Kind
    target: str
    for_s: float = 0.0
    number: int = 0
    latency_s: float = 0.0

    def __str__(self) -> str:
        text = f"{self.at_s:5.2f} s  {self.kind} {self.target}"
        match self.kind:
            case Kind.SLOW:
                text += f" to {self.number} bytes/s, {self.latency_s:.3f} s late"
            case Kind.FILL_DISK:
                text += f" at {self.number} bytes a file"
            case Kind.KILL_WORKER | Kind.FREEZE_WORKER:
                text += f" number {self.number}"
            case Kind.CANCEL_LATE:
                text += " with checkpoint" if self.number else ""
        return f"{text} for {self.for_s:.2f} s" if self.for_s else text


@dataclass(frozen=True, kw_only=True)
class Schedule:
    seed: int
    trainings: tuple[TrainingPlan, ...]
    actions: tuple[Action, ...] = field(default=())

    def has(self, *kinds: Kind) -> bool:
        return any(action.kind in kinds for action in self.actions)

    def __str__(self) -> str:
        lines = [f"seed={self.seed}"]
        entries: list[TrainingPlan | Action] = [*self.trainings, *self.actions]
        lines += [f"  {entry}" for entry in sorted(entries, key=lambda each: each.at_s)]
        return "\n".join(lines)


def draw_schedule(seed: int) -> Schedule:
    """Return the schedule of a seed; the same for ever, but for a change of this module."""
    rng = random.Random(seed)
    trainings = tuple(_draw_training(rng, f"t{number}") for number in range(1, rng.randint(4, 7) + 1))
    kinds = rng.choices(list(_DRAWS), [weight for weight, _ in _DRAWS.values()], k=rng.randint(3, 8))
    actions = tuple(
        _DRAWS[kind][1](rng, kind, _moment(rng, _WINDOW_S), [training.name for training in trainings]) for kind in kinds
    )
    return Schedule(seed=seed, trainings=trainings, actions=tuple(sorted(actions, key=lambda action: action.at_s)))


def _draw_training(rng: random.Random, name: str) -> TrainingPlan:
    recipes = {
        Recipe.QUICK: 5,
        Recipe.MEDIUM: 4,
        Recipe.LONG: 5,
        Recipe.LSTM: 1,
        Recipe.PAIR: 1,
        Recipe.FOLDS: 1,
        Recipe.DEGENERATE: 1,
    }
    return TrainingPlan(
        name=name,
        at_s=0.0 if rng.random() < 0.4 else _moment(rng, _WINDOW_S),
        recipe=rng.choices(list(recipes), list(recipes.values()))[0],
        mode=rng.choices(["host", "local", "auto"], [7, 2, 1])[0],
        user=rng.choice(["", "ann", "ben"]),
        priority=rng.choice([0, 0, 0, 5, -5]),
        may_retry=rng.random() < 0.75,
        num_requests=rng.choice([1, 1, 1, 2, 3]),
        watchers=tuple(_draw_watcher(rng) for _ in range(rng.randint(1, 3))),
        num_stuck=rng.choice([0, 0, 1]),
        cancel=_draw_cancel(rng) if rng.random() < 0.3 else None,
    )


def _draw_watcher(rng: random.Random) -> WatcherPlan:
    is_stuck = rng.random() < 0.3
    return WatcherPlan(
        begin_s=0.0 if rng.random() < 0.5 else _moment(rng, 3.0),
        stuck_after=rng.randint(1, 100) if is_stuck else None,
        stuck_s=_moment(rng, 4.0) if is_stuck else 0.0,
    )


def _draw_cancel(rng: random.Random) -> CancelPlan:
    is_before = rng.random() < 0.2
    return CancelPlan(
        after_s=-1.0 if is_before else _moment(rng, 3.0),
        save_checkpoint=rng.random() < 0.4,
        by_request_id=is_before or rng.random() < 0.3,
        num_times=rng.choice([1, 1, 2, 3]),
    )


def _moment(rng: random.Random, limit_s: float) -> float:
    return round(rng.uniform(0.0, limit_s), 2)


Draw = Callable[[random.Random, Kind, float, Sequence[str]], Action]


def _outage(targets: Sequence[str], shortest_s: float, longest_s: float) -> Draw:
    def draw(rng: random.Random, kind: Kind, at_s: float, names: Sequence[str]) -> Action:
        return Action(
            at_s=at_s, kind=kind, target=rng.choice(targets), for_s=round(rng.uniform(shortest_s, longest_s), 2)
        )

    return draw


def _worker(rng: random.Random, kind: Kind, at_s: float, names: Sequence[str]) -> Action:
    for_s = round(rng.uniform(0.5, 6.0), 2) if kind is Kind.FREEZE_WORKER else 0.0
    return Action(at_s=at_s, kind=kind, target=rng.choice(SERVICES), for_s=for_s, number=rng.randrange(4))


def _slow(rng: random.Random, kind: Kind, at_s: float, names: Sequence[str]) -> Action:
    return Action(
        at_s=at_s,
        kind=kind,
        target=rng.choice(NETWORKS),
        for_s=round(rng.uniform(0.5, 5.0), 2),
        number=rng.choice([20_000, 100_000, 1_000_000]),
        latency_s=rng.choice([0.0, 0.03, 0.2]),
    )


def _fill_disk(rng: random.Random, kind: Kind, at_s: float, names: Sequence[str]) -> Action:
    return Action(
        at_s=at_s,
        kind=kind,
        target=rng.choice(SERVICES),
        for_s=round(rng.uniform(0.5, 4.0), 2),
        number=rng.choice(_FILE_LIMITS_BYTES),
    )


def _message(rng: random.Random, kind: Kind, at_s: float, names: Sequence[str]) -> Action:
    return Action(at_s=at_s, kind=kind, target=rng.choice(list(names)), number=rng.randrange(2))


_DRAWS: dict[Kind, tuple[int, Draw]] = {
    Kind.KILL: (6, _outage(SERVICES, 0.0, 4.0)),
    Kind.STOP: (3, _outage(SERVICES, 0.0, 2.0)),
    Kind.HURRY: (1, _outage(SERVICES, 0.0, 2.0)),
    Kind.FREEZE: (4, _outage(SERVICES, 0.5, 6.0)),
    Kind.KILL_WORKER: (2, _worker),
    Kind.FREEZE_WORKER: (2, _worker),
    Kind.CUT: (4, _outage(NETWORKS, 0.0, 5.0)),
    Kind.PAUSE: (4, _outage(NETWORKS, 0.2, 6.0)),
    Kind.SLOW: (2, _slow),
    Kind.FILL_DISK: (3, _fill_disk),
    Kind.DRAIN: (2, _outage(TRAINERS, 0.5, 4.0)),
    Kind.TRAIN_AGAIN: (2, _message),
    Kind.TRAIN_OTHERWISE: (1, _message),
    Kind.CANCEL_LATE: (2, _message),
}
