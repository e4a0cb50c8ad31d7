"""The same job by library call, local mode and host mode: the same model, bit for bit.

The library reads a store of files, the trainer has no bars and gets them from the backend.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_service_pb2_grpc

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.storage.artifact import load_result
from ktrdr_core.storage.artifact_files import DERIVED_FILES, DETERMINISTIC_FILES
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.run_job import run_training
from ktrdr_core.wire.to_proto import spec_to_proto
from tests.kit.backend import HOST, LOCAL
from tests.kit.builders import REPOSITORY
from tests.kit.processes import a_service, backend_flags, trainer_flags

SPEC = TrainingSpec(
    strategy_yaml=(REPOSITORY / "strategies" / "neuro_mean_reversion.yaml").read_text(), epochs=3, seed=7
)


async def train(stub: Any, mode: Any) -> Path:
    """Train by RPC and return the directory of the stored model."""
    spec = spec_to_proto(SPEC)
    spec.execution_mode = mode
    training_id = (await stub.Train(pb.TrainRequest(spec=spec))).training.training_id
    async for response in stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id)):
        last = response
    assert last.training.result.model_path, last.training.error
    assert last.training.placement.mode == mode
    return Path(last.training.result.model_path)


async def test_library_local_and_host_trainings_give_identical_models(tmp_path: Path) -> None:
    with (
        a_service("trainer_service", *trainer_flags(tmp_path)) as trainer,
        a_service("backend_service", *backend_flags(tmp_path, trainer.address)) as backend,
    ):
        library = run_training(
            replace(SPEC, data_mode=DataMode.LOCAL),
            bar_store=DirectoryBarStore(REPOSITORY / "data"),
            model_storage=ModelStorage(tmp_path / "library"),
        )
        assert not (tmp_path / "no-bars").exists()
        async with open_channel(backend.address) as channel:
            stub = training_service_pb2_grpc.TrainingServiceStub(channel)
            paths = [Path(library["model_path"]), await train(stub, LOCAL), await train(stub, HOST)]
    results = [load_result(path) for path in paths]
    for path, result in zip(paths[1:], results[1:], strict=True):
        for name in DETERMINISTIC_FILES:
            assert (path / name).read_bytes() == (paths[0] / name).read_bytes(), name
            assert (path / name).samefile(paths[1] / name)  # the trainer did not send what the store had
        for name in DERIVED_FILES:
            assert (path / name).stat().st_size > 0
        assert result["artifact_digest"] == library["artifact_digest"]
        assert result["training_metrics"] == library["training_metrics"]
        assert result["test_metrics"] == library["test_metrics"]
        assert result["feature_importance"] == library["feature_importance"]
        assert result["feature_names"] == library["feature_names"]
    assert len({json.dumps(result["config"], sort_keys=True) for result in results}) == 1
    assert len({result["model_id"] for result in results}) == 3
    metadata = [json.loads((path / "metadata.json").read_text()) for path in paths]
    assert [each["data_mode"] for each in metadata] == ["local", "backend", "backend"]
