"""One trainer as the backend follows it: where it is, what it said last, what runs there, how long it is silent.

Plain state without I/O; every time is `time.monotonic()`.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo

from backend_service.orchestration.trainer_channel import TrainerAnswer
from backend_service.orchestration.trainer_health import TrainerHealth
from ktrdr_core.errors import KtrdrError, VersionSkewError
from ktrdr_core.versions import check_versions

NOT_ASKED = "has not answered yet"
MAX_ADDRESSES = 16


class LeaseStream(Protocol):
    """The stream on which a trainer renews its lease."""

    def end(self, error: KtrdrError) -> None:
        """End the stream with this error."""


class Standing(NamedTuple):
    """What those who wait for a slot want to know of a trainer."""

    takes_sessions: bool = False
    is_lost: bool = False
    is_drained: bool = False
    num_open_slots: int = 0


_UNKNOWN = Standing()


@dataclass(slots=True, kw_only=True, eq=False)
class TrainerNode:
    """One trainer.

    Attributes:
        address: host:port it is reached at now.
        backend_version: Version it has to work with.
        sessions: Sessions of this backend by the address they began at; shared by all nodes.
        created_at: When the backend began to know it.
        configured_address: Its address in the configuration; "" if it announced itself.
        registered_address: The address it announced; "" if it never did.
        trainer_id: Stable identity; "" until it has said it.
        is_drained: The backend gives it no new sessions.
        stream: On which it renews its lease; None while there is none.
        renewed_at: Its last renewal; None without a lease that is alive.
        heard_at: When it was last heard of, by an answer or a renewal.
        seen_at: When what is known of it was last confirmed or refuted; None asks anew.
        next_ask_at: When it is to be asked again.
        lost_at: When its silence became too long; None while it is not lost.
        info: What it is and has.
        problem: What the last question found wrong.
        latency_s: Round trip of its last health check.
        announced: The standing that observers were last told.
    """

    address: str
    backend_version: str
    sessions: Counter[str]
    created_at: float
    configured_address: str = ""
    registered_address: str = ""
    trainer_id: str = ""
    is_drained: bool = False
    stream: LeaseStream | None = None
    renewed_at: float | None = None
    heard_at: float | None = None
    seen_at: float | None = None
    next_ask_at: float = 0.0
    lost_at: float | None = None
    info: TrainerInfo | None = None
    problem: str = NOT_ASKED
    latency_s: float = 0.0
    announced: Standing = _UNKNOWN
    _addresses: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_ADDRESSES))
    _skew: str = ""
    _reported_free: int = 0
    _reported_sessions: int = 0
    _is_full: bool = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it is reached now, then where it is configured or announced, then where it was before."""
        candidates = (self.address, self.configured_address, self.registered_address, *self._addresses)
        return tuple(dict.fromkeys(address for address in candidates if address))

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses it may be asked at now, the likeliest first."""
        announced = self.registered_address if self.renewed_at is not None else ""
        current = self.address if self.address in (self.configured_address, announced) else ""
        return tuple(dict.fromkeys(address for address in (current, self.configured_address, announced) if address))

    @property
    def name(self) -> str:
        """Identity and address, for logs."""
        return f"{self.trainer_id} at {self.address}" if self.trainer_id else self.address

    @property
    def num_sessions(self) -> int:
        return sum(self.sessions[address] for address in self.addresses)

    @property
    def num_free_slots(self) -> int:
        """Slots that are free, as `TrainerHealth` tells them; never more than it has less those this backend uses."""
        if self.info is None or self._is_full:
            return 0
        num_sessions = self.num_sessions
        free = min(self._reported_free + self._reported_sessions, self.info.num_slots) - num_sessions
        return max(free, 0)

    @property
    def is_draining(self) -> bool:
        return self.is_drained or (self.info is not None and self.info.is_draining)

    @property
    def standing(self) -> Standing:
        takes_sessions = not self.fault and not self.is_draining
        is_lost = self.lost_at is not None
        return Standing(takes_sessions, is_lost, self.is_drained, self.num_free_slots if takes_sessions else 0)

    @property
    def fault(self) -> str:
        """Why it is not healthy; "" if it is."""
        if self.lost_at is not None:
            has_left = not self.configured_address and self.heard_at is not None
            return "it renews no lease" if has_left else self.problem or "nothing is heard of it"
        return self.problem or self._skew or (self.info.unavailable_reason if self.info else "")

    def move_to(self, address: str) -> None:
        """Reach it at another address from now on."""
        if address != self.address:
            self._addresses.append(self.address)
            self.address = address

    def take_answer(self, address: str, answer: TrainerAnswer, now: float, *, num_sessions: int) -> None:
        """Note that it answered.

        Args:
            address: Where.
            answer: What.
            now: When.
            num_sessions: Sessions of this backend that the answer counts for certain.
        """
        self.move_to(address)
        self._hear(now)
        self.seen_at = now
        self.latency_s = answer.latency_s
        is_explained = answer.info is not None and bool(answer.info.unavailable_reason)
        self.problem = "" if is_explained else answer.problem
        if answer.info is not None:
            self.take_info(answer.info, num_sessions=num_sessions)

    def take_failure(self, problem: str, now: float, *, is_heard: bool = False) -> None:
        """Note that it did not answer, or that it answered (`is_heard`) what makes it of no use."""
        self.problem = problem
        self.seen_at = now
        if is_heard:
            self._hear(now)

    def take_renewal(self, info: TrainerInfo, now: float) -> None:
        """Note that it renewed its lease; whether the backend reaches it is another question."""
        self._hear(now)
        self.renewed_at = now
        if not self.problem:
            self.seen_at = now
        self.take_info(info, num_sessions=self.num_sessions)

    def take_info(self, info: TrainerInfo, *, num_sessions: int) -> None:
        """Note what it says of itself."""
        self.info = info
        self._reported_free = info.num_free_slots
        self._reported_sessions = num_sessions
        self._is_full = False
        try:
            check_versions(backend=self.backend_version, trainer=info.version)
        except VersionSkewError as error:
            self._skew = error.message
        else:
            self._skew = ""

    def mark_full(self) -> None:
        """Count no slot as free until it tells again."""
        self._is_full = True

    def forget_identity(self) -> None:
        """Become a trainer that nothing is known of: at its address answers another one now."""
        self.trainer_id = ""
        self.registered_address = ""
        self.stream = self.renewed_at = self.info = None
        self._skew = ""

    def shift(self, seconds: float) -> None:
        """Count a time in which the backend itself stood still as no silence."""
        self.heard_at = None if self.heard_at is None else self.heard_at + seconds
        self.renewed_at = None if self.renewed_at is None else self.renewed_at + seconds
        self.created_at += seconds

    def silence_s(self, now: float) -> float | None:
        return None if self.heard_at is None else max(now - self.heard_at, 0.0)

    def is_stale(self, now: float, max_age_s: float | None) -> bool:
        """Return whether it must be asked before what is known of it may be used; None is always now."""
        if not self.targets:
            return False  # it announced itself and is silent: it is heard of when it announces itself again
        return max_age_s is None or self.seen_at is None or now - self.seen_at > max_age_s

    def health(self, now: float) -> TrainerHealth:
        """Return what is known of it."""
        fault = self.fault
        says = "drained: it gets no new sessions" if self.is_drained else "it is draining: it takes no new sessions"
        return TrainerHealth(
            address=self.address,
            is_healthy=not fault,
            message=fault or (says if self.is_draining else "SERVING"),
            latency_s=self.latency_s,
            info=self.info,
            trainer_id=self.trainer_id,
            is_draining=self.is_draining,
            is_registered=bool(self.registered_address),
            is_lost=self.lost_at is not None,
            silence_s=self.silence_s(now),
            num_sessions=self.num_sessions,
            num_free_slots=self.num_free_slots,
        )

    def _hear(self, now: float) -> None:
        self.heard_at = now
        self.lost_at = None
