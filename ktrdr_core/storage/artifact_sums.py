"""What an upload announces of an artifact: the SHA-256 of each travelling file, and of all their bytes in a row.

Who makes an artifact has to read it once for its digest. Its sums are kept beside it, so that who sends it need not
read it again before the first byte goes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from ktrdr_core.data.durable import write_durably
from ktrdr_core.errors import NotFoundError
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, ArtifactFile, digest_of_files

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArtifactSums:
    """Digests of an artifact on disk.

    Attributes:
        files: The travelling files, in their order.
        sha256: Of the bytes of all of them, one file after the other; hex.
    """

    files: tuple[ArtifactFile, ...]
    sha256: str

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Read every travelling file of `directory` once.

        Raises:
            NotFoundError: One is missing.
        """
        for name in TRAVELLING_FILES:  # before the large one is read
            path = directory / name
            if path.is_symlink() or not path.is_file():
                raise NotFoundError(f"{directory} is no complete model artifact: {name} is missing")
        files: list[ArtifactFile] = []
        whole = hashlib.sha256()
        block = memoryview(bytearray(_BLOCK_BYTES))
        for name in TRAVELLING_FILES:
            # The first file is the beginning of the whole: it needs no digest of its own, and it is the large one.
            own = hashlib.sha256() if files else whole
            size_bytes = 0
            with (directory / name).open("rb", buffering=0) as file:
                while num_read := file.readinto(block):
                    size_bytes += num_read
                    whole.update(block[:num_read])
                    if own is not whole:
                        own.update(block[:num_read])
            files.append(ArtifactFile(name, size_bytes, own.hexdigest()))
        return cls(tuple(files), whole.hexdigest())

    @property
    def artifact_digest(self) -> str:
        """The digest by which an artifact is known: of all files but `metadata.json`."""
        return digest_of_files(self.files)


def sums_path(directory: Path) -> Path:
    """Return where the sums of the artifact in `directory` are kept."""
    return directory.with_name(f"{directory.name}.sums.json")


def write_sums(directory: Path, sums: ArtifactSums) -> None:
    """Keep the sums of the artifact in `directory` beside it."""
    content = {"files": [astuple(file) for file in sums.files], "sha256": sums.sha256}
    write_durably(sums_path(directory), json.dumps(content).encode())


def read_sums(directory: Path) -> ArtifactSums | None:
    """Return what `write_sums` kept; None if there is nothing, or the files have other sizes now."""
    try:
        raw = json.loads(sums_path(directory).read_bytes())
        sums = ArtifactSums(tuple(ArtifactFile(*file) for file in raw["files"]), raw["sha256"])
        for digest in (sums.sha256, *(file.sha256 for file in sums.files)):
            if len(bytes.fromhex(digest)) != hashlib.sha256().digest_size:
                return None
        sizes = [(directory / file.name).stat().st_size for file in sums.files]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    is_whole = tuple(file.name for file in sums.files) == TRAVELLING_FILES
    return sums if is_whole and sizes == [file.size_bytes for file in sums.files] else None


def forget_sums(directory: Path) -> bool:
    """Remove what `write_sums` kept; return whether there was something that could be removed."""
    try:
        sums_path(directory).unlink()
    except OSError:
        return False
    return True
