"""Reads what `model_comparison` compares, from a directory or from a backend."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.model_comparison import ReadModel
from ktrdr_client.model_types import Model


def read_directory(directory: Path) -> ReadModel:
    """Return what the model in `directory` tells; every file of it is read.

    Raises:
        NotFoundError: A file is missing.
        CorruptDataError: A file is not what it should be.
    """
    from ktrdr_core.storage.artifact import load_result
    from ktrdr_core.storage.artifact_files import WEIGHTS_FILE, artifact_files, digest_of_files

    files = artifact_files(directory)
    return ReadModel(
        name=str(directory),
        result=load_result(directory, digest=digest_of_files(files)),
        weights_sha256=next(file.sha256 for file in files if file.name == WEIGHTS_FILE),
    )


async def read_stored(client: AsyncClient, name: str) -> tuple[Model, ReadModel]:
    """Return a stored model and what it tells; its weights stay where they are.

    Raises:
        ModelNotFoundError: There is no such model.
        CorruptDataError: A file is not what it should be.
    """
    from ktrdr_core.storage.artifact import load_result
    from ktrdr_core.storage.artifact_files import JSON_FILES, WEIGHTS_FILE

    model = await client.get_model(name)
    with tempfile.TemporaryDirectory(prefix="ktrdr-model-") as directory:
        await client.pull_model(model.name, Path(directory), files=JSON_FILES)
        result = await asyncio.to_thread(load_result, Path(directory), digest=model.artifact_digest)
    weights = next((file.sha256 for file in model.files if file.name == WEIGHTS_FILE), "")
    return model, ReadModel(name=model.name, result=result, weights_sha256=weights)
