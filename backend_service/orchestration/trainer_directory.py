"""Which trainers there are: those configured, those that announced themselves, one node each, and which are drained."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from backend_service.orchestration.trainer_node import NOT_ASKED, TrainerNode
from ktrdr_core.errors import NoSlotError, NotFoundError
from ktrdr_core.logging import get_logger

_DRAINED_KEY = "drained_trainers"
_MAX_NAMED = 20
_log = get_logger(__name__)


class ConfigStore(Protocol):
    """Keeps configuration values across restarts."""

    async def read_config(self, key: str) -> str | None:
        """Return a value, or None if it was never written."""

    async def write_config(self, key: str, value: str) -> str | None:
        """Store a value and return the one before."""


class TrainerDirectory:
    """The nodes, found by address or identity.

    Two ways to one trainer (configured and announced) become one node as soon as its identity is known.

    Args:
        addresses: host:port of each configured trainer.
        version: The backend's.
        config: Keeps which trainers are drained.
        max_registered: Bound on trainers that only announced themselves.
        now: The time, as everywhere here by `time.monotonic()`.
    """

    def __init__(
        self, addresses: Sequence[str], *, version: str, config: ConfigStore, max_registered: int, now: float
    ) -> None:
        self.sessions: Counter[str] = Counter()
        self._version = version
        self._config = config
        self._max_registered = max_registered
        self._nodes: list[TrainerNode] = []  # those configured, in their order, then the others as they came
        self._by_id: dict[str, TrainerNode] = {}
        self._drained: dict[
            str, str
        ] = {}  # by identity, or by address where there is none yet; the value is an address
        for address in dict.fromkeys(addresses):
            self._nodes.append(self._build(address, now, configured_address=address))

    def __iter__(self) -> Iterator[TrainerNode]:
        return iter(tuple(self._nodes))

    def __contains__(self, node: TrainerNode) -> bool:
        return node in self._nodes

    def by_id(self, trainer_id: str) -> TrainerNode | None:
        return self._by_id.get(trainer_id) if trainer_id else None

    def by_address(self, address: str) -> TrainerNode | None:
        """Return who is reached at an address; else who was."""
        now_there = next((node for node in self._nodes if node.address == address), None)
        return now_there or next((node for node in self._nodes if address in node.addresses), None)

    def require(self, trainer: str) -> TrainerNode:
        """Return a trainer by identity or address.

        Raises:
            NotFoundError: There is none; the message names those there are.
        """
        node = self.by_id(trainer) or self.by_address(trainer)
        if node is not None:
            return node
        names = [node.name for node in self._nodes[:_MAX_NAMED]]
        if len(self._nodes) > _MAX_NAMED:
            names.append(f"{len(self._nodes) - _MAX_NAMED} more")
        known = "; ".join(names) or "none: start the backend with --trainer, or a trainer with --backend"
        raise NotFoundError(f"there is no trainer {trainer!r}; known are: {known}", metadata={"trainer": trainer})

    def identify(self, node: TrainerNode, address: str, trainer_id: str, now: float) -> str:
        """Note who answered at an address of a node; return what is wrong with that, "" if nothing is."""
        if not trainer_id or trainer_id == node.trainer_id:
            return ""
        if address != node.configured_address:
            return f"at {address} answers another trainer, {trainer_id}; check its --advertise-address"
        holder = self._by_id.get(trainer_id)
        if holder is not None and holder.configured_address:
            answers = not holder.problem and holder.lost_at is None
            if answers and self._nodes.index(holder) < self._nodes.index(node):
                return _also_at(holder.address)
            holder.forget_identity()
            holder.problem = _also_at(address) if answers else holder.problem
        if node.trainer_id:
            _log.warning("at %s answers trainer %s now, no longer %s", address, trainer_id, node.trainer_id)
            self._by_id.pop(node.trainer_id, None)
            node.forget_identity()
        node.trainer_id = trainer_id
        self._by_id[trainer_id] = node
        if holder is not None and not holder.configured_address:
            self._absorb(node, holder)
        self._flag(node)
        return ""

    def register(self, trainer_id: str, address: str, now: float) -> TrainerNode:
        """Return the node of a trainer that announces itself at an address; a new one if it was not known.

        Raises:
            NoSlotError: There are too many.
        """
        node = self._by_id.get(trainer_id)
        if node is None:
            node = next((each for each in self._nodes if each.configured_address == address), None)
            if node is None or node.trainer_id:
                self._make_room()
                node = self._build(address, now)
                self._nodes.append(node)
            node.trainer_id = trainer_id
            self._by_id[trainer_id] = node
        if node.registered_address != address:
            node.registered_address = address
            node.next_ask_at = now
            if not node.configured_address:
                node.move_to(address)
                node.problem = NOT_ASKED
                node.seen_at = None
        self._flag(node)
        return node

    def forget_lost(self, before: float) -> None:
        """Forget trainers that only announced themselves and were lost before a time, unless they are drained."""
        for node in self:
            is_old = node.lost_at is not None and node.lost_at <= before
            if is_old and not node.configured_address and not node.is_drained:
                self._forget(node)

    async def restore(self, now: float) -> None:
        """Take from the store which trainers are drained; those not known yet are listed as lost."""
        stored = await self._config.read_config(_DRAINED_KEY)
        self._drained = json.loads(stored) if stored else {}
        for key, address in self._drained.items():
            if self.by_address(address) is None:
                node = self._build(address, now, registered_address=address)
                node.trainer_id = "" if key == address else key
                node.problem = "has not announced itself since the backend started"
                node.lost_at = now
                self._nodes.append(node)
                if node.trainer_id:
                    self._by_id[node.trainer_id] = node
        for node in self._nodes:
            self._flag(node)

    async def set_draining(self, node: TrainerNode, is_draining: bool) -> None:
        """Drain a trainer, or end that; stored before it is so.

        Raises:
            StorageError: It cannot be stored; nothing has changed.
        """
        keys = [key for key in (node.trainer_id, *node.addresses) if key]
        drained = {key: address for key, address in self._drained.items() if key not in keys}
        if is_draining:
            drained[keys[0]] = node.address
        if drained != self._drained:
            await self._config.write_config(_DRAINED_KEY, json.dumps(drained, sort_keys=True))
            self._drained = drained
            _log.info("trainer %s is %s", node.name, "drained" if is_draining else "no longer drained")
        for each in self._nodes:
            self._flag(each)

    def _build(
        self, address: str, now: float, *, configured_address: str = "", registered_address: str = ""
    ) -> TrainerNode:
        return TrainerNode(
            address=address,
            backend_version=self._version,
            sessions=self.sessions,
            created_at=now,
            configured_address=configured_address,
            registered_address=registered_address,
        )

    def _flag(self, node: TrainerNode) -> None:
        keys = (node.trainer_id, node.configured_address or node.registered_address)
        node.is_drained = any(key in self._drained for key in keys if key)

    def _absorb(self, node: TrainerNode, announced: TrainerNode) -> None:
        """Make one node of two ways to one trainer."""
        node.registered_address = announced.registered_address
        node.stream, node.renewed_at = announced.stream, announced.renewed_at
        self._nodes.remove(announced)

    def _make_room(self) -> None:
        announced = [node for node in self._nodes if not node.configured_address]
        if len(announced) < self._max_registered:
            return
        lost = [node for node in announced if node.lost_at is not None and not node.is_drained]
        if not lost:
            raise NoSlotError(
                f"the backend follows at most {self._max_registered} trainers that announce themselves, and has them; "
                "configure it with --trainer, or end some",
                retry_after_s=30.0,
            )
        self._forget(min(lost, key=lambda node: node.lost_at or 0.0))

    def _forget(self, node: TrainerNode) -> None:
        _log.info("trainer %s is forgotten", node.name)
        self._nodes.remove(node)
        if self._by_id.get(node.trainer_id) is node:
            del self._by_id[node.trainer_id]


def _also_at(address: str) -> str:
    return f"it is the trainer at {address} too; configure one of the two addresses"
