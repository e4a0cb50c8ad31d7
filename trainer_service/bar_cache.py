"""Bars of backends on this machine: a file for each part, named by its content; bounded, what is used least goes first.

A session gets links to the files it reads, so what leaves the cache is not taken away from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ktrdr_core.data.partitions import Manifest, Part, write_manifest
from ktrdr_core.errors import BarsMissingError, InvalidInputError, StorageError, UnavailableError
from ktrdr_core.logging import get_logger
from ktrdr_core.undisturbed import in_thread

DEFAULT_CACHE_BYTES = 4 << 30
HOLD_S = 5.0
_SUFFIX = ".parquet"
_PARTIAL_SUFFIX = ".part"
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size_bytes: int
    used_s: float

    @property
    def sha256(self) -> str:
        return self.path.name.partition(".")[0]


class BarCache:
    """Keeps parts of series.

    Args:
        directory: Where they are; made if missing.
        max_size_bytes: How much is kept, what is being fetched included.
        hold_s: How long what was just fetched stays for the Train that it was fetched for.
        link: Makes a second name of a file; where it cannot, the file is copied.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_size_bytes: int = DEFAULT_CACHE_BYTES,
        hold_s: float = HOLD_S,
        link: Callable[[Path, Path], None] = os.link,
    ) -> None:
        self._directory = directory
        self._max_size_bytes = max_size_bytes
        self._hold_s = hold_s
        self._link = link
        self._uses: Counter[str] = Counter()
        self._held_until: dict[str, float] = {}
        self._incoming: dict[str, int] = {}
        self._removing = asyncio.Lock()

    def prepare(self) -> None:
        """Make the directory, remove what a killed process was fetching, and keep the bound; blocking, before all else.

        Raises:
            OSError: The disk takes no writes.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.iterdir():
            if path.suffix != _SUFFIX and path.is_file():
                path.unlink()
        files = self._files()
        total_bytes = sum(file.size_bytes for file in files)
        for file in files:
            if total_bytes <= self._max_size_bytes:
                break
            file.path.unlink()
            total_bytes -= file.size_bytes

    def check_size(self, series: Sequence[Manifest]) -> None:
        """Raise InvalidInputError if the series have no place here all at once."""
        size_bytes = sum(part.size_bytes for part in unique_parts(series))
        if size_bytes > self._max_size_bytes:
            raise InvalidInputError(
                f"the bars have {size_bytes} bytes and this trainer's cache takes {self._max_size_bytes}; start it with"
                " a larger --bar-cache-bytes, or train on fewer series",
                field="series",
            )

    @contextmanager
    def using(self, series: Sequence[Manifest]) -> Iterator[None]:
        """Remove none of the parts of the series for the time of the block, and for a moment after it."""
        names = [part.sha256 for part in unique_parts(series)]
        self._uses.update(names)
        try:
            yield
        finally:
            now = time.monotonic()
            self._held_until = {name: until for name, until in self._held_until.items() if until > now}
            for name in names:
                self._uses[name] -= 1
                if not self._uses[name]:
                    del self._uses[name]
                self._held_until[name] = now + self._hold_s

    async def has(self, part: Part) -> bool:
        """Return whether a part is here, whole; a damaged one is removed."""
        return await in_thread(_is_sound, self._path(part), part)

    @asynccontextmanager
    async def room_for(self, part: Part) -> AsyncIterator[Path]:
        """Keep room for a part while it is fetched to the path that is given; half of it may be beside that already.

        Raises:
            UnavailableError: There is none, for all that is here is in use.
            StorageError: What is here cannot be removed.
        """
        async with self._removing:
            try:
                await self._make_room(part)
            except OSError as error:
                raise StorageError(
                    f"the bar cache {self._directory} cannot be used: {error}; see to its disk"
                ) from error
            self._incoming[part.sha256] = part.size_bytes
        try:
            yield self._path(part)
        finally:
            del self._incoming[part.sha256]

    async def take(self, series: Sequence[Manifest], directory: Path) -> None:
        """Put the series into `directory`, which must not exist, as a bar store that stays whatever leaves the cache.

        Every byte is compared with its digest. Nothing is left if it does not succeed.

        Raises:
            BarsMissingError: A part is not here, or was damaged and has been removed.
            StorageError: The disk takes no writes.
        """
        with self.using(series):
            try:
                missing = await in_thread(self._take, series, directory)
            except OSError as error:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
                raise StorageError(f"the bars cannot be put into {directory}: {error}; free space there") from error
        if missing:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise BarsMissingError(
                f"bars of {', '.join(missing)} are not in this trainer's cache; have them fetched with PrepareBars,"
                " then train"
            )

    def _take(self, series: Sequence[Manifest], directory: Path) -> list[str]:
        """Return which series lack something here."""
        missing = []
        for manifest in series:
            folder = directory / f"{manifest.symbol}_{manifest.timeframe}"
            folder.mkdir(parents=True)
            are_sound = [self._take_part(part, folder / part.file) for part in manifest.parts]
            if all(are_sound):
                write_manifest(folder, manifest)
            else:
                missing.append(f"{manifest.symbol} {manifest.timeframe}")
        return missing

    def _take_part(self, part: Part, path: Path) -> bool:
        kept = self._path(part)
        try:
            self._link_or_copy(kept, path)
        except FileNotFoundError:
            return False
        if not _is_sound(path, part):
            _log.warning("Removing damaged bars from the cache: %s", kept.name)
            kept.unlink(missing_ok=True)
            return False
        os.utime(kept)
        return True

    def _link_or_copy(self, source: Path, path: Path) -> None:
        try:
            self._link(source, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, path)

    async def _make_room(self, part: Part) -> None:
        files = [file for file in await asyncio.to_thread(self._files) if file.sha256 not in self._incoming]
        wanted_bytes = sum(file.size_bytes for file in files if file.sha256 != part.sha256)
        wanted_bytes += sum(self._incoming.values()) + part.size_bytes
        now = time.monotonic()
        for file in files:
            if wanted_bytes <= self._max_size_bytes:
                return
            is_held = self._held_until.get(file.sha256, 0.0) > now
            if file.sha256 in self._uses or is_held or file.sha256 == part.sha256:
                continue
            _log.info("Removing %s from the bar cache to make room", file.path.name)
            await asyncio.to_thread(file.path.unlink, missing_ok=True)
            wanted_bytes -= file.size_bytes
        if wanted_bytes > self._max_size_bytes:
            raise UnavailableError(
                f"the bar cache of {self._max_size_bytes} bytes is full of bars that are about to be used; ask again in"
                " a moment"
            )

    def _files(self) -> list[_File]:
        """Return what is kept, whole or partial, the least recently used first; blocking."""
        files = []
        for path in self._directory.iterdir():
            if path.suffix in (_SUFFIX, _PARTIAL_SUFFIX):
                with contextlib.suppress(FileNotFoundError):  # it has just been fetched, and has its own name now
                    stat = path.stat()
                    files.append(_File(path, stat.st_size, stat.st_mtime))
        return sorted(files, key=lambda file: file.used_s)

    def _path(self, part: Part) -> Path:
        return self._directory / f"{part.sha256}{_SUFFIX}"


def unique_parts(series: Iterable[Manifest]) -> list[Part]:
    """Return the parts of the series, each content once."""
    return list({part.sha256: part for manifest in series for part in manifest.parts}.values())


def _is_sound(path: Path, part: Part) -> bool:
    """Return whether the file has the bytes of the part; one that has not is removed."""
    try:
        with path.open("rb") as file:
            is_sound = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
    except FileNotFoundError:
        return False
    if not is_sound:
        path.unlink(missing_ok=True)
    return is_sound
