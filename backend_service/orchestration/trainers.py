"""The trainers this backend knows: asked in the background, counted, drained, found where they are now."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc.aio
from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo

from backend_service.operations.records import SessionRow
from backend_service.orchestration.trainer_channel import TrainerChannels
from backend_service.orchestration.trainer_directory import ConfigStore, TrainerDirectory
from backend_service.orchestration.trainer_health import TrainerHealth
from backend_service.orchestration.trainer_node import LeaseStream, TrainerNode
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import TrainerLostError, UnavailableError, UnreachableError, WriteConflictError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.undisturbed import undisturbed
from ktrdr_core.versions import check_versions

if TYPE_CHECKING:
    from ktrdr.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

DEVICES_TIMEOUT_S = 30.0  # a cold trainer loads torch to look
MAX_REGISTERED = 1_000
FORGET_AFTER_S = 86_400.0
UNUSED_CHANNEL_S = 3_600.0
_TICKS_PER_RENEWAL = 8
_log = get_logger(__name__)


def _do_nothing() -> None:
    """Nobody wants to know."""


class Trainers:
    """Known trainers: those configured, in their order, then those that announced themselves.

    A configured trainer is asked every `renew_s`; one that announced itself renews a lease instead, and is asked now
    and then whether the backend reaches it. One that is silent for `lease_s` is lost until it is heard of again.

    Args:
        addresses: host:port of each configured trainer.
        health_timeout_s: Limit of a health check.
        lease_s: Silence after which a trainer is lost.
        renew_s: How often a trainer is asked, or renews its lease.
        version: The backend's version; trainers have to work with it.
        config: Keeps which trainers are drained.
        max_registered: Bound on trainers that only announced themselves.
        forget_after_s: How long those are listed after they were lost.
        security: TLS and the token of the calls; None is plain text.

    Attributes:
        on_change: Called when a trainer appears, answers again, is lost, has more free slots, is drained or no longer
            drained; at most once per turn of the loop.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        health_timeout_s: float = 2.0,
        lease_s: float = 10.0,
        renew_s: float = 2.0,
        version: str,
        config: ConfigStore,
        max_registered: int = MAX_REGISTERED,
        forget_after_s: float = FORGET_AFTER_S,
        security: ChannelSecurity | None = None,
    ) -> None:
        self.lease_s = lease_s
        self.renew_s = renew_s
        self.on_change: Callable[[], None] = _do_nothing
        self._version = version
        self._forget_after_s = forget_after_s
        self._directory = TrainerDirectory(
            addresses, version=version, config=config, max_registered=max_registered, now=time.monotonic()
        )
        self._channels = TrainerChannels(health_timeout_s=health_timeout_s, security=security)
        self._asks: dict[TrainerNode, asyncio.Task[None]] = {}
        self._drains: set[asyncio.Task[TrainerHealth]] = set()
        self._drain_lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._is_change_due = False

    async def start(self) -> None:
        """Take from the store which trainers are drained, and begin to ask."""
        await self._directory.restore(time.monotonic())
        self._watch = asyncio.create_task(self._watch_all(), name="trainers")
        self._watch.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Ask no more, and close every channel."""
        tasks = [*self._asks.values(), *([self._watch] if self._watch else [])]
        self._watch = None
        for task in tasks:
            task.cancel()
        if tasks or self._drains:
            await asyncio.wait([*tasks, *self._drains])
        await self._channels.close()

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the channel to a trainer; also to one that is no longer known but still runs a session."""
        return self._channels.channel(address)

    def stub(self, address: str) -> TrainerServiceAsyncStub:
        return self._channels.stub(address)

    def stub_of(self, session: SessionRow) -> TrainerServiceAsyncStub:
        """Return the way to the trainer that has a session, wherever it is now.

        Raises:
            UnreachableError: Another trainer is known to have its address now.
        """
        now = self.resolve(session.trainer, session.trainer_id)
        found = self.trainer_id_of(now)
        if session.trainer_id and found and found != session.trainer_id:
            raise UnreachableError(f"trainer {session.trainer_id} is gone from {now}: another one, {found}, is there")
        return self.stub(now)

    def resolve(self, address: str, trainer_id: str) -> str:
        """Return where a trainer is now that was at `address`; `address` itself if it is not known."""
        node = self._directory.by_id(trainer_id)
        return node.address if node is not None else address

    def trainer_id_of(self, address: str) -> str:
        """Return the identity of the trainer at an address; "" if it is not known."""
        node = self._directory.by_address(address)
        return node.trainer_id if node is not None else ""

    def reserve(self, address: str) -> None:
        """Count a session of ours that begins at an address, or is found there after a restart."""
        self._directory.sessions[address] += 1
        self._settle_at(address)

    def release(self, address: str) -> None:
        """Count a session of ours as ended; the address is the one it was reserved at."""
        sessions = self._directory.sessions
        if sessions[address] > 1:
            sessions[address] -= 1
        else:
            if not sessions[address]:
                _log.error("a session ended at %s that was never counted", address)
            del sessions[address]
        self._settle_at(address)

    def mark_full(self, address: str) -> None:
        """Count no slot of a trainer as free until it tells again: it has just refused a session."""
        node = self._directory.by_address(address)
        if node is not None:
            node.mark_full()
            self._settle(node)

    def free_slots(self, address: str) -> int:
        """Return how many sessions a trainer would take now; 0 if it takes none."""
        node = self._directory.by_address(address)
        return 0 if node is None else node.standing.num_open_slots

    @property
    def num_free_slots(self) -> int:
        """Sessions that all trainers together would take now."""
        return sum(node.standing.num_open_slots for node in self._directory)

    @property
    def num_slots(self) -> int:
        """Slots of the trainers that take sessions, free or not."""
        return sum(node.info.num_slots for node in self._directory if node.info and node.standing.takes_sessions)

    async def check_all(self, *, needs_devices: bool = False, max_age_s: float | None = None) -> list[TrainerHealth]:
        """Return what is known of every trainer.

        Args:
            needs_devices: Wait for a trainer that is still finding out what devices it has.
            max_age_s: What is known for longer is asked again, all trainers at once; None asks all.
        """
        now = time.monotonic()
        asks = [self._ask(node) for node in self._directory if node.is_stale(now, max_age_s)]
        if asks:
            await asyncio.wait(asks)
        if needs_devices:
            await self._await_devices()
        return self._healths()

    def ask_again(self, address: str) -> None:
        """Ask a trainer how it is now, without waiting: a session there was just lost."""
        node = self._directory.by_address(address)
        if node is not None:
            self._ask(node)

    async def check_spec(self, spec: TrainingSpec) -> None:
        """Return if a trainer would take `spec` with the bars it has; the first that would ends the question.

        Raises:
            InvalidInputError, NotFoundError: A trainer refuses it and none takes it.
            UnavailableError: No trainer answers.
        """
        nodes = list(self._directory)
        addresses = [node.address for node in nodes if node.lost_at is None]
        if not addresses:
            raise UnavailableError("every trainer is lost" if nodes else "no trainer is known")
        await self._channels.check_spec(addresses, spec)

    async def set_draining(self, trainer: str, is_draining: bool) -> TrainerHealth:
        """Give a trainer no new sessions, or end that; kept across restarts, stored before it is shown.

        Args:
            trainer: Its identity or its address.
            is_draining: Which of the two.

        Raises:
            NotFoundError: The backend knows no such trainer; the message names those it knows.
            StorageError: It cannot be stored; nothing has changed.
        """
        # What was stored is shown, whatever becomes of the caller.
        return await undisturbed(self._set_draining(trainer, is_draining), self._drains)

    def renew(self, stream: LeaseStream, trainer_id: str, address: str, info: TrainerInfo) -> None:
        """Take a renewal of a lease, the first one or a later one.

        Args:
            stream: On which it came; it replaces another stream of this trainer, which is ended.
            trainer_id: Who renews.
            address: host:port the backend is to reach it at.
            info: What it is and has.

        Raises:
            VersionSkewError: It does not work with this backend; both versions are in the metadata.
            NoSlotError: Too many trainers are registered.
        """
        check_versions(backend=self._version, trainer=info.version)
        now = time.monotonic()
        node = self._directory.register(trainer_id, address, now)
        if node.stream is not stream:
            if node.stream is not None:
                _log.warning("trainer %s registers again; two with one identity would do so for ever", node.name)
                node.stream.end(
                    WriteConflictError(
                        f"another stream of trainer {trainer_id} took over; if no other is meant to, give each trainer "
                        "a data directory of its own",
                        metadata={"trainer_id": trainer_id},
                    )
                )
            else:
                _log.info("trainer %s registered", node.name)
            node.stream = stream
            node.next_ask_at = now
        node.take_renewal(info, now)
        if self._watch is not None and node.next_ask_at <= now:
            self._ask(node)
        self._settle(node)

    def leave(self, stream: LeaseStream, trainer_id: str) -> None:
        """Note that a stream has ended; the lease goes on until its time is up, for the trainer may come back."""
        node = self._directory.by_id(trainer_id)
        if node is not None and node.stream is stream:
            node.stream = None
            node.seen_at = None

    def _healths(self) -> list[TrainerHealth]:
        now = time.monotonic()
        return [node.health(now) for node in self._directory]

    def _ask(self, node: TrainerNode) -> asyncio.Task[None]:
        """Return the question to a trainer, the one that is on its way if there is one."""
        task = self._asks.get(node)
        if task is None:
            task = self._asks[node] = asyncio.create_task(self._ask_now(node), name=f"ask-{node.address}")
            task.add_done_callback(_log_failure)
        return task

    async def _ask_now(self, node: TrainerNode) -> None:
        begun_at = time.monotonic()
        sessions_before = node.num_sessions
        problem = node.problem
        is_heard = False
        try:
            for address in node.targets:
                answer = await self._channels.ask(address)
                now = time.monotonic()
                problem = answer.problem
                if not node.configured_address:
                    problem = f"it renews its lease, but at {address}: {problem}; check its --advertise-address"
                if answer.is_reached:
                    trainer_id = answer.info.trainer_id if answer.info is not None else ""
                    other = self._directory.identify(node, address, trainer_id, now)
                    if not other:
                        # A session that began or ended meanwhile may be in the answer or not: the fewer free slots.
                        node.take_answer(address, answer, now, num_sessions=min(sessions_before, node.num_sessions))
                        return
                    problem = other
                    is_heard = address == node.configured_address
            node.take_failure(problem, time.monotonic(), is_heard=is_heard)
        finally:
            del self._asks[node]
            is_steady = not node.configured_address and not node.problem
            interval_s = self.lease_s if is_steady else self.renew_s
            node.next_ask_at = begun_at + interval_s * random.uniform(0.8, 1.0)  # else all are asked at once
            self._settle(node)

    async def _await_devices(self) -> None:
        asks = [
            asyncio.create_task(self._ask_devices(node))
            for node in self._directory
            if not node.problem and not node.info
        ]
        if asks:
            await asyncio.gather(*asks)

    async def _ask_devices(self, node: TrainerNode) -> None:
        try:
            info = await self._channels.ask_info(node.address, DEVICES_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            node.take_failure(from_rpc_error(error).message, time.monotonic())
        else:
            if info is not None:
                node.take_info(info, num_sessions=node.num_sessions)
        self._settle(node)

    async def _set_draining(self, trainer: str, is_draining: bool) -> TrainerHealth:
        async with self._drain_lock:
            node = self._directory.require(trainer)
            await self._directory.set_draining(node, is_draining)
        for each in self._directory:
            self._settle(each)
        return node.health(time.monotonic())

    async def _watch_all(self) -> None:
        tick_s = self.renew_s / _TICKS_PER_RENEWAL
        expected = time.monotonic()
        while True:
            now = time.monotonic()
            late_s = now - expected
            if late_s > self.lease_s / 10:
                _log.warning("the backend itself stood still for %.1f s", late_s)
                for node in self._directory:
                    node.shift(late_s)
            try:
                await self._watch_once(now)
            except Exception:  # noqa: BLE001 - a defect costs this round, not the watch over every trainer
                _log.exception("a round of watching over the trainers failed")
            expected = time.monotonic() + tick_s
            await asyncio.sleep(tick_s)

    async def _watch_once(self, now: float) -> None:
        for node in list(self._directory):
            self._end_silent(node, now)
            if node.next_ask_at <= now and node.targets:
                self._ask(node)
        self._directory.forget_lost(now - self._forget_after_s)
        await self._channels.close_unused(self._is_channel_needed, unused_s=UNUSED_CHANNEL_S)

    def _end_silent(self, node: TrainerNode, now: float) -> None:
        """Draw the consequences of a silence that is too long."""
        if node.renewed_at is not None and now - node.renewed_at > self.lease_s:
            node.renewed_at = None
            if node.stream is not None:
                node.stream.end(
                    TrainerLostError(
                        f"trainer {node.trainer_id} renewed no lease for {self.lease_s:g} s; register again"
                    )
                )
                node.stream = None
        heard_at = node.created_at if node.heard_at is None else node.heard_at
        has_no_way = not node.targets  # it announced itself, and its lease is over
        if node.lost_at is None and (has_no_way or now - heard_at > self.lease_s):
            node.lost_at = now
            _log.warning("trainer %s is lost: %s", node.name, node.fault)
            self._settle(node)

    def _is_channel_needed(self, address: str) -> bool:
        return self._directory.sessions[address] > 0 or self._directory.by_address(address) is not None

    def _settle_at(self, address: str) -> None:
        node = self._directory.by_address(address)
        if node is not None:
            self._settle(node)

    def _settle(self, node: TrainerNode) -> None:
        """Tell the observer if a trainer changed in a way that matters to those who wait."""
        before, now = node.announced, node.standing
        node.announced = now
        if before.is_lost and not now.is_lost:
            _log.info("trainer %s is heard of again", node.name)
        has_changed = before[:-1] != now[:-1] or before.num_open_slots < now.num_open_slots
        if has_changed and not self._is_change_due:
            self._is_change_due = True
            asyncio.get_running_loop().call_soon(self._tell_change)

    def _tell_change(self) -> None:
        self._is_change_due = False
        self.on_change()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("%s failed", task.get_name(), exc_info=task.exception())
