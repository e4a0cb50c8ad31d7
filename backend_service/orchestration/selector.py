"""Where a training runs, decided by rule; each consideration is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from backend_service.operations.records import Placement
from backend_service.orchestration.trainer_health import TrainerHealth
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import ExecutionModeError, InvalidInputError

MAX_VIEW_AGE_S = 2.5  # trainers are asked, or renew their lease, every 2 s
MAX_TRAINER_REASONS = 50  # they are stored with each training


class NoTrainerYetError(Exception):
    """No trainer is suitable now, and the training may go nowhere else: it waits for one.

    Stays inside the orchestration: it is none of the errors that other processes are told.

    Args:
        message: What is missing, with every consideration.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TrainerChecks(Protocol):
    """Who knows the health of every trainer."""

    async def check_all(
        self, *, needs_devices: bool = False, max_age_s: float | None = None
    ) -> list[TrainerHealth]: ...


async def count_no_gpus() -> int:
    """Return 0: a machine without a GPU."""
    return 0


class ExecutionModeSelector:
    """Chooses "local" or "host".

    - local: the backend's machine; an error if a GPU is required and it has none.
    - host: a suitable trainer (healthy, not draining, with a GPU if one is required); else an error if a GPU is
      required, else local.
    - auto: if a GPU is required, a healthy trainer that has one, else the backend's own GPU, else an error; if none
      is required, local.

    Where the backend's machine cannot train at all, "auto" asks for a trainer, and what would be local is an error.

    Args:
        default_mode: Mode of trainings that name none.
        trainers: Their health; None knows none.
        can_train_locally: Whether this machine has a slot and what training needs.
        count_local_gpus: Counts this machine's GPUs; asked only when a GPU is required.
    """

    def __init__(
        self,
        default_mode: str = "auto",
        *,
        trainers: TrainerChecks | None = None,
        can_train_locally: bool = True,
        count_local_gpus: Callable[[], Awaitable[int]] = count_no_gpus,
    ) -> None:
        self._default_mode = _parse_mode(default_mode)
        self._trainers = trainers
        self._can_train_locally = can_train_locally
        self._count_local_gpus = count_local_gpus

    @property
    def default_mode(self) -> ExecutionMode:
        return self._default_mode

    @property
    def can_train_locally(self) -> bool:
        return self._can_train_locally

    def set_default_mode(self, mode: str) -> None:
        """Change the mode of trainings that name none.

        Raises:
            InvalidInputError: (a ValueError) It is not "auto", "local" or "host".
        """
        self._default_mode = _parse_mode(mode)

    async def select_mode(self, requested_mode: str | None = None, require_gpu: bool = False) -> str:
        """Return "local" or "host"; see `select`."""
        return str((await self.select(requested_mode, require_gpu=require_gpu)).mode)

    def effective_mode(self, requested_mode: str | None) -> ExecutionMode:
        """Return the mode asked for, or the default."""
        return self._default_mode if requested_mode is None else _parse_mode(requested_mode)

    def may_use_trainer(self, requested_mode: str | None, *, require_gpu: bool) -> bool:
        """Return whether a trainer is considered at all."""
        mode = self.effective_mode(requested_mode)
        needs_one = require_gpu or not self._can_train_locally
        return mode is ExecutionMode.HOST or (mode is ExecutionMode.AUTO and needs_one)

    async def select(
        self,
        requested_mode: str | None = None,
        *,
        require_gpu: bool = False,
        num_gpus: int = 0,
        may_fall_back: bool = True,
        excluded: Collection[str] = (),
    ) -> Placement:
        """Return the place and the reasons.

        Args:
            requested_mode: "auto", "local", "host", or None for the default.
            require_gpu: Nothing without a GPU will do.
            num_gpus: Devices asked for; more than one implies that a place has as many.
            may_fall_back: Where a trainer is considered and none is suitable, this machine will do.
            excluded: Trainers that have said that they lack the bars.

        Raises:
            InvalidInputError: The mode is another word.
            NoTrainerYetError: No trainer is suitable now, and it may not fall back.
            ExecutionModeError: No place satisfies what is required.
        """
        mode = self.effective_mode(requested_mode)
        origin = "was asked for" if requested_mode is not None else "is the default"
        reasons = [f"mode {mode} {origin}"]
        num_required = max(num_gpus, int(require_gpu))
        if num_required:
            reasons.append(f"{num_required} GPU required")
        if self.may_use_trainer(requested_mode, require_gpu=num_required > 0):
            trainer = await self._find_trainer(num_required, reasons, excluded)
            if trainer is not None:
                return self._decide(ExecutionMode.HOST, reasons, trainer=trainer)
            if not may_fall_back:
                raise NoTrainerYetError(f"no trainer is suitable now ({'; '.join(reasons)})")
            if mode is ExecutionMode.HOST and num_required:
                raise self._refuse(reasons, "start a trainer with a GPU, or do not require one")
            if mode is ExecutionMode.HOST:
                reasons.append("no trainer is available: falls back to the backend's machine")
        if not self._can_train_locally:
            reasons.append("the backend's machine cannot train")
            raise self._refuse(reasons, "start a trainer, or install ktrdr[train] here and give it a slot")
        if num_required:
            num_local = await self._count_local_gpus()
            reasons.append(f"the backend's machine has {num_local} GPU")
            if num_local < num_required:
                raise self._refuse(reasons, "use a place with enough GPUs, or do not require them")
        return self._decide(ExecutionMode.LOCAL, reasons)

    async def _find_trainer(self, num_gpus: int, reasons: list[str], excluded: Collection[str]) -> str | None:
        """Return the suitable trainer with the most free slots, among equals with the fewest sessions of ours."""
        found: list[TrainerHealth] = []
        if self._trainers is not None:
            found = await self._trainers.check_all(needs_devices=num_gpus > 0, max_age_s=MAX_VIEW_AGE_S)
        if not found:
            reasons.append("no trainer is known")
        obstacles = [
            "lacks bars of the training" if health.address in excluded else _obstacle(health, num_gpus)
            for health in found
        ]
        reasons.extend(
            f"trainer {health.address} {obstacle or _load(health)}"
            for health, obstacle in zip(found[:MAX_TRAINER_REASONS], obstacles, strict=False)
        )
        if len(found) > MAX_TRAINER_REASONS:
            reasons.append(f"{len(found) - MAX_TRAINER_REASONS} more trainers were considered")
        suitable = [health for health, obstacle in zip(found, obstacles, strict=True) if not obstacle]
        if not suitable:
            return None
        best = max(suitable, key=lambda health: (health.num_free_slots, -health.num_sessions))  # the first of equals
        if best.num_free_slots:
            reasons.append(f"trainer {best.address} has the most free slots")
        else:
            reasons.append(f"every suitable trainer is full: trainer {best.address} is as good as any")
        return best.address

    def _decide(self, mode: ExecutionMode, reasons: list[str], *, trainer: str = "") -> Placement:
        return Placement(mode=mode, trainer=trainer, reasons=tuple(reasons))

    def _refuse(self, reasons: list[str], way_out: str) -> ExecutionModeError:
        return ExecutionModeError(f"no place satisfies the training ({'; '.join(reasons)}); {way_out}")


def _obstacle(health: TrainerHealth, num_gpus: int) -> str:
    """Return why a trainer will not do, "" if it will; that it is full is no obstacle, slots become free."""
    if health.is_lost:
        silence = "" if health.silence_s is None else f", silent for {health.silence_s:.0f} s"
        return f"is lost{silence}: {health.message}"
    if not health.is_healthy:
        return f"is not healthy: {health.message}"
    if health.is_draining:
        return f"is healthy, but {health.message}"
    if health.num_gpus < num_gpus:
        return "is healthy and has not told its devices yet" if health.info is None else f"has {_devices(health)}"
    return ""


def _load(health: TrainerHealth) -> str:
    slots = f"{health.num_free_slots} of {health.num_slots} slots free"
    return f"is healthy with {slots}, {health.num_sessions} sessions from here, {_devices(health)}"


def _devices(health: TrainerHealth) -> str:
    memory_gb = health.gpu_memory_gb
    return f"{health.num_gpus} GPU" if memory_gb is None else f"{health.num_gpus} GPU with {memory_gb:.1f} GiB free"


def _parse_mode(mode: str) -> ExecutionMode:
    try:
        return ExecutionMode(mode)
    except ValueError:
        known = ", ".join(ExecutionMode)
        message = f"execution mode must be one of {known}, was {mode!r}"
        raise InvalidInputError(message, field="execution_mode") from None
