"""`ktrdr models pull` and `import`: models from and to the backend, with how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.model_types import Model
from ktrdr_core.config.naming import is_name
from ktrdr_core.errors import CorruptDataError, KtrdrError
from ktrdr_core.rpc.codec_choice import Compression


async def pull(session: CliSession, name: str, *, to: Path | None, compression: str) -> int:
    """Bring a model here: verified, and gone on with where an earlier pull ended."""
    async with session.client() as client:
        model = await client.get_model(name)
        directory = _own_place(model) if to is None else to
        is_done = False
        try:
            with _bar(session, f"pulling {model.name}") as progress:
                await client.pull_model(
                    model.name,
                    directory,
                    compression=Compression(compression),
                    progress=progress,
                    on_retry=lambda problem: _tell_retry(session, problem),
                )
            is_done = True
        finally:
            if not is_done and _has_parts(directory):
                session.note(f"not complete: what has arrived is kept in {directory}; the same command goes on from it")
    if session.is_json:
        session.write_json(
            json_lines.line(
                "model_pull",
                {
                    "name": model.name,
                    "directory": str(directory.resolve()),
                    "artifact_digest": model.artifact_digest,
                    "size_bytes": model.size_bytes,
                    "files": model.files,
                },
            )
        )
        return ExitCode.OK
    what = f"{len(model.files)} file{'' if len(model.files) == 1 else 's'}, {formats.size(model.size_bytes)}"
    session.say(f"{model.name} is in {directory}: {what}, verified")
    session.say(f"next   {session.command(f'models predict {directory}')}")
    return ExitCode.OK


async def import_model(session: CliSession, directory: Path, *, compression: str) -> int:
    """Put a model directory into the backend's store as the next version."""
    async with session.client() as client:
        with _bar(session, f"importing {directory}") as progress:
            model = await client.upload_model(directory, compression=Compression(compression), progress=progress)
    if session.is_json:
        session.write_json(json_lines.line("model", model))
        return ExitCode.OK
    session.say(f"{directory} is stored as {model.name}")
    session.say(f"next   {session.command(f'models show {model.name}')}")
    return ExitCode.OK


def _own_place(model: Model) -> Path:
    """Return where a model goes without `--to`: its name, below the working directory."""
    parts = model.name.split("/")
    if not all(is_name(part) for part in parts):
        raise CorruptDataError(f"the backend calls the model {model.name!r}, which is no name; choose a --to DIR")
    return Path(*parts)


def _has_parts(directory: Path) -> bool:
    return any(part.stat().st_size for part in directory.glob(".*.part"))


def _tell_retry(session: CliSession, problem: KtrdrError) -> None:
    session.note(f"{problem.message}; going on ...")


@contextmanager
def _bar(session: CliSession, title: str) -> Iterator[Callable[[int, int], None]]:
    """Give what shows how far a transfer is: a bar where stderr is a terminal, else nothing."""
    if session.is_json or not session.err.is_terminal:
        yield lambda here, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=session.err, transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda here, total: bars.update(task, completed=here, total=total)
