"""A save target for a worker: one artifact, in one directory, on its way to a model store."""

from __future__ import annotations

from pathlib import Path

from ktrdr_core.clock import from_iso
from ktrdr_core.storage.artifact import ModelArtifact, load_result, write_artifact
from ktrdr_core.storage.artifact_sums import ArtifactSums, write_sums
from ktrdr_core.storage.lineage import build_lineage
from ktrdr_core.storage.stored_model import StoredModel


class StagedStorage:
    """Writes the travelling files of one artifact into `directory`, and their sums beside it.

    Args:
        directory: Appears complete once the artifact is saved; its parent is created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, artifact: ModelArtifact) -> StoredModel:
        write_artifact(self._directory, artifact)
        sums = ArtifactSums.of(self._directory)
        write_sums(self._directory, sums)
        result = load_result(self._directory, digest=sums.artifact_digest)
        return StoredModel(
            name=self._directory.name,
            path=self._directory,
            model_id=result["model_id"],
            strategy_name=str(result["config"]["strategy_config"]["name"]),
            symbols=tuple(result["metadata"]["symbols"]),
            timeframes=tuple(result["metadata"]["timeframes"]),
            version=0,
            create_time=from_iso(result["metadata"]["end_time"]),
            training_id="",
            attempt=0,
            digest=result["artifact_digest"],
            files=sums.files,
            training_metrics=result["training_metrics"],
            test_metrics=result["test_metrics"],
            feature_importance=result["feature_importance"],
            lineage=build_lineage(result["config"], result["metadata"]),
            result=result,
        )
