"""The backend's directory of strategies, and what is known of each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from backend_service.operations.records import StrategyHistory
from backend_service.operations.store import OperationsStore
from ktrdr_core.config.loader import parse_strategy
from ktrdr_core.config.naming import check_name
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import InvalidInputError, InvalidSpecError, StrategyNotFoundError
from ktrdr_core.storage.model_storage import ModelStorage

MAX_STRATEGY_BYTES = 1 << 20
_ENDINGS = (".yaml", ".yml")


class StrategyStatus(StrEnum):
    """What is known of a strategy's trainings."""

    UNTRAINED = "UNTRAINED"
    TRAINING = "TRAINING"
    TRAINED = "TRAINED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyEntry:
    """A strategy of the directory.

    Attributes:
        config: What the file says; None if it is refused.
        error: Why it is refused; "" if it is valid.
        latest_version: Version of its newest model; None without one.
        last_training_time: When its last training was accepted; None without one.
    """

    name: str
    config: StrategyConfig | None
    error: str
    status: StrategyStatus
    latest_version: int | None
    last_training_time: datetime | None


class Strategies:
    """Strategies in a directory, one YAML file each.

    Args:
        directory: The directory; a missing one has none.
        store: Knows their trainings.
        storage: Knows their models.
    """

    def __init__(self, directory: Path, *, store: OperationsStore, storage: ModelStorage) -> None:
        self._directory = directory
        self._store = store
        self._storage = storage

    async def read(self, name: str) -> str:
        """Return the text of a strategy.

        Raises:
            InvalidSpecError: The name is no name; nothing outside the directory can be read.
            StrategyNotFoundError: There is none.
        """
        check_name(name, field="spec.strategy.name", what="strategy name", error_class=InvalidSpecError)
        return await asyncio.to_thread(self._read, name)

    async def list_entries(self) -> list[StrategyEntry]:
        """Return every strategy of the directory, by name."""
        history = await self._store.load_strategy_history()
        return await asyncio.to_thread(self._list, history)

    def _files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else ():
            if path.suffix in _ENDINGS and path.is_file():
                found.setdefault(path.stem, path)
        return found

    def _read(self, name: str) -> str:
        files = self._files()
        path = files.get(name)
        if path is None:
            known = ", ".join(files) or "none"
            raise StrategyNotFoundError(
                f"there is no strategy {name!r} in {self._directory}; there are: {known}", metadata={"strategy": name}
            )
        return _read_text(path)

    def _list(self, history: dict[str, StrategyHistory]) -> list[StrategyEntry]:
        newest = self._storage.newest_versions()
        return [self._describe(name, path, history, newest) for name, path in self._files().items()]

    def _describe(
        self, file_name: str, path: Path, history: dict[str, StrategyHistory], newest: dict[str, int]
    ) -> StrategyEntry:
        config: StrategyConfig | None = None
        error = ""
        try:
            config = parse_strategy(_read_text(path), source=path.name)
        except (InvalidInputError, OSError, UnicodeDecodeError) as refused:
            error = str(refused)
        # Trainings and models go by the name in the file, requests by the name of the file.
        name = config.name if config else file_name
        past = history.get(name)
        version = newest.get(name)
        if past is not None and past.has_active:
            status = StrategyStatus.TRAINING
        elif version is not None:
            status = StrategyStatus.TRAINED
        elif past is not None and past.last_state is TrainingState.FAILED:
            status = StrategyStatus.FAILED
        else:
            status = StrategyStatus.UNTRAINED
        return StrategyEntry(
            name=file_name,
            config=config,
            error=error,
            status=status,
            latest_version=version,
            last_training_time=past.last_create_time if past else None,
        )


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_STRATEGY_BYTES:
        raise InvalidSpecError(f"{path.name} has more than {MAX_STRATEGY_BYTES} bytes; shorten it")
    return path.read_text(encoding="utf-8")
