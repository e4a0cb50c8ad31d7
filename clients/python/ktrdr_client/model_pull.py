"""Fetches files of stored models: gone on with after every break, verified, there whole or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
from ktrdr.models.v1.model_service_pb2 import DownloadModelRequest, DownloadModelResponse

from ktrdr_client.calls import problem_of
from ktrdr_client.model_types import Model, ModelFile
from ktrdr_client.part_file import PartFile, is_file_there
from ktrdr_core.config.naming import is_name
from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.errors import CorruptDataError, InvalidInputError, KtrdrError, StorageError, UnavailableError
from ktrdr_core.storage.artifact_files import METADATA_FILE, WEIGHTS_FILE
from ktrdr_core.undisturbed import in_thread

Call = grpc.aio.UnaryStreamCall[DownloadModelRequest, DownloadModelResponse]
OpenCall = Callable[[str, int], Call]
"""Opens the stream of a file from an offset on."""

Progress = Callable[[int, int], None]
"""Told the bytes that are here, and all bytes."""

OnRetry = Callable[[KtrdrError], None]
"""Told why a stream is opened again, before each pause."""


@dataclass(frozen=True, kw_only=True)
class PullPolicy:
    """When a broken stream is opened again and when it is given up.

    Attributes:
        idle_timeout_s: Silence after which a stream counts as dead; there is no limit on the total.
        delays_s: Pauses before it is opened again, one after another, the last one ever after; from the first one again
            once bytes have come.
        give_up_after_s: Time without a single byte after which the pull ends; what has arrived is kept.
    """

    idle_timeout_s: float = 30.0
    delays_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    give_up_after_s: float = 120.0


async def pull_files(
    open_call: OpenCall,
    model: Model,
    directory: Path,
    *,
    files: Collection[str] | None,
    policy: PullPolicy,
    progress: Progress | None,
    on_retry: OnRetry | None,
) -> None:
    """Make `directory` have the files of `model`; see AsyncClient.pull_model."""
    wanted = _wanted(model, files)
    try:
        missing = await in_thread(_missing, model, directory, wanted)
        total = sum(file.size_bytes for file in wanted)
        told = _Told(progress, total - sum(file.size_bytes for file in missing), total)
        await _bring(open_call, [(directory / file.name, file) for file in missing], policy, told, on_retry)
    except OSError as error:
        raise _disk_error(directory, error) from error


async def pull_file(
    open_call: OpenCall,
    model: Model,
    name: str,
    path: Path,
    *,
    policy: PullPolicy,
    progress: Progress | None,
    on_retry: OnRetry | None,
) -> None:
    """Make `path` the file `name` of `model`; see AsyncClient.download_model_file."""
    (file,) = _wanted(model, [name])
    try:
        is_there = await in_thread(is_file_there, path, file)
        told = _Told(progress, file.size_bytes if is_there else 0, file.size_bytes)
        await _bring(open_call, [] if is_there else [(path, file)], policy, told, on_retry)
    except OSError as error:
        raise _disk_error(path.parent, error) from error


async def _bring(
    open_call: OpenCall,
    missing: Sequence[tuple[Path, ModelFile]],
    policy: PullPolicy,
    told: _Told,
    on_retry: OnRetry | None,
) -> None:
    """Fetch each file beside its place; once all are whole, put all into their places."""
    async with AsyncExitStack() as opened:
        parts = [PartFile(path, file) for path, file in missing]
        for part in parts:
            opened.push_async_callback(in_thread, part.close)
            await in_thread(part.open)
            told.add(part.size_bytes)
        for part in parts:
            await _fetch(open_call, part, policy, told, on_retry)
        await in_thread(_publish, parts)


def _disk_error(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{directory} takes no files ({error}); free space or choose another directory, then pull again: what has "
        "arrived is kept"
    )


class _Told:
    """How much is here, told at each change."""

    def __init__(self, progress: Progress | None, here: int, total: int) -> None:
        self._progress = progress
        self._here = here
        self._total = total
        self.add(0)

    def add(self, num_bytes: int) -> None:
        """Count bytes that have come; negative ones are fetched again."""
        self._here += num_bytes
        if self._progress is not None:
            self._progress(self._here, self._total)


def _wanted(model: Model, names: Collection[str] | None) -> list[ModelFile]:
    there = {file.name: file for file in model.files}
    for name in there:
        if not is_name(name):
            raise CorruptDataError(f"the backend names {name!r} as a file of {model.name}, which is no file name")
    unknown = set(names or ()) - set(there)
    if unknown:
        raise InvalidInputError(
            f"{model.name} has no file {', '.join(sorted(unknown))}; it has {', '.join(there)}", field="files"
        )
    return [file for name, file in there.items() if names is None or name in names]


def _missing(model: Model, directory: Path, wanted: Sequence[ModelFile]) -> list[ModelFile]:
    """Return what must be fetched; refuse a directory that has another model."""
    if directory.exists() and not directory.is_dir():
        raise InvalidInputError(f"{directory} is no directory; choose another one", field="directory")
    directory.mkdir(parents=True, exist_ok=True)
    missing = [file for file in wanted if not is_file_there(directory / file.name, file)]
    differing = [file.name for file in missing if (directory / file.name).exists()]
    identity = next((file for file in model.files if file.name == METADATA_FILE), None)
    if differing and (identity is None or not is_file_there(directory / METADATA_FILE, identity)):
        raise InvalidInputError(
            f"{directory} has another {differing[0]} than {model.name}; choose another directory, or remove that one",
            field="directory",
        )
    return missing


def _publish(parts: Sequence[PartFile]) -> None:
    # The weights come last: a directory without them is no model directory, so that a crash leaves none that is not
    # complete.
    for part in sorted(parts, key=lambda part: part.file.name == WEIGHTS_FILE):
        part.publish()
    for directory in {part.path.parent for part in parts}:
        fsync_directory(directory)


async def _fetch(
    open_call: OpenCall,
    part: PartFile,
    policy: PullPolicy,
    told: _Told,
    on_retry: OnRetry | None,
) -> None:
    """Bring the rest of a file here and verify it."""
    is_second = False
    num_failures = 0
    heard_at = time.monotonic()
    while True:
        before = part.size_bytes
        problem = None if part.is_whole else await _read_on(open_call, part, policy.idle_timeout_s, told)
        if part.is_whole:
            if await in_thread(part.is_sound):
                return
            told.add(-part.size_bytes)
            await in_thread(part.restart)
            if is_second:
                raise CorruptDataError(
                    f"{part.file.name} arrived twice with another SHA-256 than the backend published, "
                    f"{part.file.sha256}; look with: ktrdr models verify"
                )
            is_second = True
            continue
        now = time.monotonic()
        if part.size_bytes > before:
            num_failures, heard_at = 0, now
        problem = problem or UnavailableError(f"the stream of {part.file.name} ended before its last byte")
        if now - heard_at > policy.give_up_after_s:
            raise UnavailableError(
                f"nothing more of {part.file.name} came for {now - heard_at:.0f} s ({problem.message}); "
                f"{part.size_bytes} of {part.file.size_bytes} bytes are kept in {part.path}, pull again to go on",
                metadata=problem.metadata,
            ) from problem
        if on_retry is not None:
            on_retry(problem)
        await asyncio.sleep(policy.delays_s[min(num_failures, len(policy.delays_s) - 1)])
        num_failures += 1


async def _read_on(open_call: OpenCall, part: PartFile, idle_timeout_s: float, told: _Told) -> KtrdrError | None:
    """Read one stream to its end; return what broke it, if another try may help."""
    call = open_call(part.file.name, part.size_bytes)
    writing: asyncio.Task[None] | None = None
    is_first = True
    try:
        while True:
            async with asyncio.timeout(idle_timeout_s):
                response = await call.read()
            if writing is not None:  # the next chunk came while the one before was written
                await writing
                writing = None
            if response is grpc.aio.EOF:
                return None
            message = cast(DownloadModelResponse, response)
            if is_first and message.file.sha256.hex() != part.file.sha256:
                raise CorruptDataError(f"the backend has another {part.file.name} than it said; pull again")
            if not is_first:  # what is no chunk is refused as one
                writing = asyncio.create_task(_write(part, message, told))
            is_first = False
    except TimeoutError:
        return UnavailableError(f"nothing of {part.file.name} came for {idle_timeout_s:g} s")
    except grpc.RpcError as error:
        problem = problem_of(error)
        if not isinstance(problem, UnavailableError):
            raise problem from None
        return problem
    except _DamagedChunkError as error:
        return error.problem
    finally:
        call.cancel()
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)


class _DamagedChunkError(Exception):
    """What the network made of a chunk; sent again it may be sound."""

    def __init__(self, problem: CorruptDataError) -> None:
        super().__init__(problem.message)
        self.problem = problem


async def _write(part: PartFile, message: DownloadModelResponse, told: _Told) -> None:
    before = part.size_bytes
    try:
        await in_thread(part.add, message.chunk)
    except CorruptDataError as error:
        raise _DamagedChunkError(error) from error
    told.add(part.size_bytes - before)
