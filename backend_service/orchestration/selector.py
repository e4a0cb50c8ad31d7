"""Where a training runs, decided by rule; each consideration is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from backend_service.operations.records import Placement
from backend_service.orchestration.trainers import TrainerHealth
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import ExecutionModeError, InvalidInputError
from ktrdr_core.logging import get_logger

_log = get_logger(__name__)


class TrainerChecks(Protocol):
    """Who knows the health of every trainer."""

    async def check_all(self, *, needs_devices: bool = False) -> list[TrainerHealth]: ...


async def count_no_gpus() -> int:
    """Return 0: a machine without a GPU."""
    return 0


class ExecutionModeSelector:
    """Chooses "local" or "host".

    - local: the backend's machine; an error if a GPU is required and it has none.
    - host: a healthy trainer (with a GPU, if one is required); else an error if a GPU is required, else local.
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
        self, requested_mode: str | None = None, *, require_gpu: bool = False, num_gpus: int = 0
    ) -> Placement:
        """Return the place and the reasons.

        Args:
            requested_mode: "auto", "local", "host", or None for the default.
            require_gpu: Nothing without a GPU will do.
            num_gpus: Devices asked for; more than one implies that a place has as many.

        Raises:
            InvalidInputError: The mode is another word.
            ExecutionModeError: No place satisfies what is required.
        """
        mode = self.effective_mode(requested_mode)
        origin = "was asked for" if requested_mode is not None else "is the default"
        reasons = [f"mode {mode} {origin}"]
        num_required = max(num_gpus, int(require_gpu))
        if num_required:
            reasons.append(f"{num_required} GPU required")
        if self.may_use_trainer(requested_mode, require_gpu=num_required > 0):
            trainer = await self._find_trainer(num_required, reasons)
            if trainer is not None:
                return self._decide(ExecutionMode.HOST, reasons, trainer=trainer)
            if mode is ExecutionMode.HOST and num_required:
                raise self._refuse(reasons, "start a trainer with a GPU, or do not require one")
            if mode is ExecutionMode.HOST:
                reasons.append("no trainer is available: falls back to the backend's machine")
                _log.warning("no healthy trainer, falling back to local")
        if not self._can_train_locally:
            reasons.append("the backend's machine cannot train")
            raise self._refuse(reasons, "start a trainer, or install ktrdr[train] here and give it a slot")
        if num_required:
            num_local = await self._count_local_gpus()
            reasons.append(f"the backend's machine has {num_local} GPU")
            if num_local < num_required:
                raise self._refuse(reasons, "use a place with enough GPUs, or do not require them")
        return self._decide(ExecutionMode.LOCAL, reasons)

    async def _find_trainer(self, num_gpus: int, reasons: list[str]) -> str | None:
        """Return the healthy trainer with the most free slots, the first configured among equals."""
        found = [] if self._trainers is None else await self._trainers.check_all(needs_devices=num_gpus > 0)
        if not found:
            reasons.append("no trainer is configured")
        best: TrainerHealth | None = None
        for health in found:
            if not health.is_healthy:
                reasons.append(f"trainer {health.address} is not healthy: {health.message}")
            elif health.num_gpus < num_gpus:
                reasons.append(f"trainer {health.address} is healthy and has {health.num_gpus} GPU")
            else:
                reasons.append(f"trainer {health.address} is healthy with {health.num_free_slots} free slots")
                if best is None or health.num_free_slots > best.num_free_slots:
                    best = health
        return best.address if best else None

    def _decide(self, mode: ExecutionMode, reasons: list[str], *, trainer: str = "") -> Placement:
        _log.debug("chose %s %s: %s", mode, trainer, "; ".join(reasons))
        return Placement(mode=mode, trainer=trainer, reasons=tuple(reasons))

    def _refuse(self, reasons: list[str], way_out: str) -> ExecutionModeError:
        _log.warning("no place: %s", "; ".join(reasons))
        return ExecutionModeError(f"no place satisfies the training ({'; '.join(reasons)}); {way_out}")


def _parse_mode(mode: str) -> ExecutionMode:
    try:
        return ExecutionMode(mode)
    except ValueError:
        known = ", ".join(ExecutionMode)
        message = f"execution mode must be one of {known}, was {mode!r}"
        raise InvalidInputError(message, field="execution_mode") from None
