"""Builds what a store answers of a model from the model's own directory; the weights are not read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.errors import CorruptDataError, InvalidInputError, NotFoundError
from ktrdr_core.storage.artifact import load_result
from ktrdr_core.storage.layout import ASIDE_DIR, ASIDE_NAME, is_uuid, place, split_version
from ktrdr_core.storage.lineage import build_lineage
from ktrdr_core.storage.publication import Publication
from ktrdr_core.storage.stored_model import StoredModel


def read_version(path: Path, *, aliases: Sequence[str] = ()) -> StoredModel:
    """Return the version, or the artifact kept aside, in the directory `path` of a store.

    Raises:
        CorruptDataError: A file of it is missing, or what its files tell cannot be read.
    """
    publication = Publication.read(path)
    try:
        result = load_result(path, digest=publication.digest)
    except NotFoundError as error:
        raise CorruptDataError(f"{error.message}; restore it or retrain") from error
    return describe_version(path, publication, result, aliases=aliases)


def describe_version(
    path: Path, publication: Publication, result: TrainingResult, *, aliases: Sequence[str] = ()
) -> StoredModel:
    """Return the model that `publication` and `result` tell of, as the one in the directory `path` of a store.

    Raises:
        CorruptDataError: They tell something that no model has.
    """
    is_kept_aside = path.parent.name == ASIDE_DIR
    version = split_version(path.name)
    try:
        strategy_name, _ = place(result)
        if not is_uuid(result["model_id"]):
            raise ValueError(f"model_id {result['model_id']!r} is no UUID")
        _check_importance(result["feature_importance"])
        lineage = build_lineage(result["config"], result["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise CorruptDataError(f"the model artifact {path} is damaged: {error!r}; restore it or retrain") from error
    return StoredModel(
        name=f"{ASIDE_NAME if is_kept_aside else path.parent.name}/{path.name}",
        path=path,
        model_id=result["model_id"],
        strategy_name=strategy_name if is_kept_aside else path.parent.name,
        symbols=tuple(result["metadata"]["symbols"]),
        timeframes=tuple(result["metadata"]["timeframes"]),
        version=version[1] if version and not is_kept_aside else 0,
        create_time=publication.create_time,
        training_id=publication.training_id,
        attempt=publication.attempt,
        digest=publication.digest,
        files=publication.files,
        training_metrics=result["training_metrics"],
        test_metrics=result["test_metrics"],
        feature_importance=result["feature_importance"],
        lineage=lineage,
        aliases=tuple(aliases),
        is_kept_aside=is_kept_aside,
        result=result,
    )


def _check_importance(importance: dict[str, float]) -> None:
    for name, value in importance.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"importance of {name!r} is no finite number")
