"""Writes a stored model as a file for other programs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from ktrdr_core.data.durable import fsync_directory, fsync_tree, open_durably
from ktrdr_core.domain.export_format import ExportFormat
from ktrdr_core.errors import AlreadyExistsError, NotFoundError, StorageError
from ktrdr_core.storage.artifact import verify_artifact
from ktrdr_core.storage.artifact_files import DERIVED_FILES, WEIGHTS_FILE
from ktrdr_core.storage.publication import check_publication
from ktrdr_core.storage.torch_files import write_torch_file

INLINE_WEIGHTS_BYTES = 64 << 20
"""Weights that are larger go into a file beside the ONNX file, which streams them: in it they are in memory twice."""

_TORCH_FILES = dict(zip((ExportFormat.PT, ExportFormat.FULL), DERIVED_FILES, strict=True))


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the file asked for, then the one beside it that holds the weights of a large ONNX model."""

    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def export_model(
    directory: Path,
    target: Path,
    export_format: ExportFormat,
    *,
    name: str,
    force: bool = False,
    inline_weights_bytes: int = INLINE_WEIGHTS_BYTES,
) -> Exported:
    """Write the model in `directory` as the file `target`, which appears whole or not at all.

    Args:
        directory: A model artifact; its files are checked first.
        target: Where to; its directory exists.
        export_format: What to write. PT and FULL are the `model.pt` and `model_full.pt` of the store.
        name: Of the model, for the metadata of an ONNX file.
        force: Replace a file that is there.
        inline_weights_bytes: Size of the largest weights that an ONNX file holds itself.

    Raises:
        AlreadyExistsError: The file is there, and `force` is not set.
        NotFoundError: There is no complete artifact, or no directory for `target`.
        CorruptDataError: The artifact is damaged.
        UnsupportedError: The format cannot take this network, or a package is missing.
        StorageError: The disk takes no writes.
    """
    files = [target]
    if export_format is ExportFormat.ONNX and _size_of_weights(directory) > inline_weights_bytes:
        files.append(target.with_name(f"{target.name}.data"))
    for file in files:
        check_target(file, force=force)
    publication = check_publication(directory)
    result = verify_artifact(directory, digest=None if publication is None else publication.digest)
    try:
        if export_format is ExportFormat.ONNX:
            _export_onnx(directory, files, {"ktrdr.model": name, "ktrdr.artifact_digest": result["artifact_digest"]})
        else:
            with open_durably(target) as stream:
                write_torch_file(directory, _TORCH_FILES[export_format], stream)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error}); free some space, or name another place") from error
    return Exported(files=tuple(files))


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a file that may not be written, before anything is done for it.

    Raises:
        AlreadyExistsError: It is there, and `force` is not set, or it is no file.
        NotFoundError: Its directory is not there.
    """
    if not target.parent.is_dir():
        raise NotFoundError(f"there is no directory {target.parent} for {target.name}; make it, or name another file")
    if target.is_dir() or (target.exists() and not force):
        way_out = "name a file" if target.is_dir() else "name another file, or replace it with --force"
        raise AlreadyExistsError(f"{target} is there already; {way_out}")


def _size_of_weights(directory: Path) -> int:
    try:
        return (directory / WEIGHTS_FILE).stat().st_size
    except FileNotFoundError:
        raise NotFoundError(f"{directory} is no complete model artifact: {WEIGHTS_FILE} is missing") from None


def _export_onnx(directory: Path, files: Sequence[Path], metadata: dict[str, str]) -> None:
    from ktrdr_core.training.onnx_export import check_onnx_packages, write_onnx
    from ktrdr_core.training.trading_model import TradingModel

    check_onnx_packages()
    model = TradingModel.load(directory)
    # A directory of its own, for the two files of a large model name each other.
    staging = files[0].parent / f".{files[0].name}.{uuid4().hex}"
    staging.mkdir()
    try:
        write_onnx(
            model,
            staging / files[0].name,
            metadata=metadata,
            data_name=files[1].name if len(files) > 1 else None,
        )
        fsync_tree(staging)
        for file in reversed(files):  # the graph last: it is not there without its weights
            (staging / file.name).rename(file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    fsync_directory(files[0].parent)
