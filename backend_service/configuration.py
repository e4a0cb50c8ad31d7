"""The backend's configuration as users see it; what they change is kept across restarts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend_service.operations.store import OperationsStore
from backend_service.orchestration.selector import ExecutionModeSelector
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import InvalidInputError

_DEFAULT_MODE_KEY = "default_mode"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Facts of this backend, and its one setting that may change while it runs."""

    store: OperationsStore
    selector: ExecutionModeSelector
    version: str
    models_dir: Path
    bars_dir: Path
    strategies_dir: Path
    trainers: tuple[str, ...]
    local_slots: int

    @property
    def default_mode(self) -> ExecutionMode:
        return self.selector.default_mode

    async def restore(self) -> None:
        """Take the mode of an earlier run, if one was ever set."""
        stored = await self.store.read_config(_DEFAULT_MODE_KEY)
        if stored is not None:
            self.selector.set_default_mode(stored)

    async def change_default_mode(self, mode: ExecutionMode | None) -> tuple[ExecutionMode, ExecutionMode]:
        """Change the mode of trainings that name none; return the mode before and the mode now.

        Raises:
            InvalidInputError: No mode is given.
        """
        if mode is None:
            raise InvalidInputError("default_mode is not set; give auto, local or host", field="default_mode")
        await self.store.write_config(_DEFAULT_MODE_KEY, str(mode))
        previous = self.selector.default_mode
        self.selector.set_default_mode(str(mode))
        return previous, mode
