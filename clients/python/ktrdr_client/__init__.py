"""Python client of the ktrdr services: `AsyncClient`, `Client`, `AsyncTrainerClient`, `TrainerClient`.

Names are resolved on first use, so that `import ktrdr_client` (and `ktrdr --help`) loads neither grpc nor protobuf.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktrdr_client.async_client import AsyncClient
    from ktrdr_client.bars_types import ImportMode
    from ktrdr_client.sync_client import Client
    from ktrdr_client.sync_trainer_client import TrainerClient
    from ktrdr_client.trainer_client import AsyncTrainerClient
    from ktrdr_core.domain.progress import ProgressEvent
    from ktrdr_core.domain.scheduling import RetryMode, Scheduling
    from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
    from ktrdr_core.domain.states import TrainingState
    from ktrdr_core.errors import KtrdrError
    from ktrdr_core.storage.model_query import ModelOrder, ModelQuery

__all__ = [
    "AsyncClient",
    "AsyncTrainerClient",
    "Client",
    "DataMode",
    "ExecutionMode",
    "ImportMode",
    "KtrdrError",
    "ModelOrder",
    "ModelQuery",
    "ProgressEvent",
    "RetryMode",
    "Scheduling",
    "TrainerClient",
    "TrainingSpec",
    "TrainingState",
]

_HOMES = {
    "AsyncClient": "ktrdr_client.async_client",
    "AsyncTrainerClient": "ktrdr_client.trainer_client",
    "Client": "ktrdr_client.sync_client",
    "DataMode": "ktrdr_core.domain.spec",
    "ExecutionMode": "ktrdr_core.domain.spec",
    "ImportMode": "ktrdr_client.bars_types",
    "KtrdrError": "ktrdr_core.errors",
    "ModelOrder": "ktrdr_core.storage.model_query",
    "ModelQuery": "ktrdr_core.storage.model_query",
    "ProgressEvent": "ktrdr_core.domain.progress",
    "RetryMode": "ktrdr_core.domain.scheduling",
    "Scheduling": "ktrdr_core.domain.scheduling",
    "TrainerClient": "ktrdr_client.sync_trainer_client",
    "TrainingSpec": "ktrdr_core.domain.spec",
    "TrainingState": "ktrdr_core.domain.states",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ktrdr_client' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
