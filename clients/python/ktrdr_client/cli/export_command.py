"""`ktrdr models export`: a stored model as a file for other programs."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
from pathlib import Path

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.model_source import model_directory
from ktrdr_client.cli.session import CliSession
from ktrdr_core.domain.export_format import ExportFormat
from ktrdr_core.errors import UnsupportedError


async def export(
    session: CliSession, model: str, *, export_format: ExportFormat, target: Path | None, force: bool
) -> int:
    """Write a model as a file; without `target` into the working directory, named after the model."""
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("exporting needs torch, which is not installed; run: pip install 'ktrdr[train]'")
    directory = model_directory(model)

    from ktrdr_core.training.export import check_target

    if export_format is ExportFormat.ONNX:
        from ktrdr_core.training.onnx_export import check_onnx_packages

        check_onnx_packages()
    if target is not None:
        target = _absolute(target)
        check_target(target, force=force)
    if directory is not None:
        return await _write(session, directory, target, export_format, name=_name_of(directory), force=force)
    async with session.client() as client:
        name = (await client.get_model(model)).name
        target = target or _default_target(name, export_format)
        check_target(target, force=force)
        # Beside the file that is asked for: where that has room there is room, and /tmp may be memory.
        with tempfile.TemporaryDirectory(prefix=".ktrdr-export-", dir=target.parent) as pulled:
            from ktrdr_core.storage.artifact_files import TRAVELLING_FILES

            await client.pull_model(name, Path(pulled), files=TRAVELLING_FILES)
            return await _write(session, Path(pulled), target, export_format, name=name, force=force)


async def _write(
    session: CliSession, directory: Path, target: Path | None, export_format: ExportFormat, *, name: str, force: bool
) -> int:
    from ktrdr_core.training.export import export_model

    target = target or _default_target(name, export_format)
    exported = await asyncio.to_thread(export_model, directory, target, export_format, name=name, force=force)
    if session.is_json:
        fields = {
            "model": name,
            "format": export_format.value,
            "files": [str(path) for path in exported.files],
            "size_bytes": exported.size_bytes,
        }
        session.write_json(json_lines.line("model_export", fields))
        return ExitCode.OK
    for path in exported.files:
        session.say(f"{path} ({formats.size(path.stat().st_size)})")
    return ExitCode.OK


def _name_of(directory: Path) -> str:
    """Return the name in the store of one of its directories; of any other its own."""
    from ktrdr_core.storage.publication import PUBLICATION_FILE

    is_in_store = (directory / PUBLICATION_FILE).is_file()
    return f"{directory.parent.name}/{directory.name}" if is_in_store else directory.name


def _default_target(name: str, export_format: ExportFormat) -> Path:
    return Path.cwd() / f"{name.replace('/', '_')}{export_format.suffix}"


def _absolute(target: Path) -> Path:
    return target.expanduser().resolve()
