"""What a store knows of a version beyond the artifact itself, in a hidden file beside the artifact's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.errors import CorruptDataError
from ktrdr_core.storage.artifact_files import DERIVED_FILES, TRAVELLING_FILES, ArtifactFile, hash_file
from ktrdr_core.storage.model_query import FileCheck

PUBLICATION_FILE = ".publication.json"
_MAX_BYTES = 64 << 10
_LARGEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Origin of a version, and the files it was published with."""

    training_id: str
    attempt: int
    digest: str
    create_time: datetime
    files: tuple[ArtifactFile, ...]

    def render(self) -> bytes:
        raw = {
            "training_id": self.training_id,
            "attempt": self.attempt,
            "digest": self.digest,
            "create_time": to_iso(self.create_time),
            "files": [[file.name, file.size_bytes, file.sha256] for file in self.files],
        }
        return json.dumps(raw, indent=2).encode()

    @classmethod
    def read(cls, directory: Path) -> Publication:
        """Return the publication of the version in `directory`.

        Raises:
            CorruptDataError: It is missing or damaged.
        """
        try:
            with (directory / PUBLICATION_FILE).open("rb") as file:
                raw = json.loads(file.read(_MAX_BYTES))
            publication = cls(
                training_id=_text(raw["training_id"]),
                attempt=_count(raw["attempt"]),
                digest=_text(raw["digest"]),
                create_time=from_iso(_text(raw["create_time"])),
                files=tuple(_file(*entry) for entry in raw["files"]),
            )
            if publication.create_time.tzinfo is None:
                raise ValueError("create_time has no time zone")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptDataError(f"{directory} has no readable {PUBLICATION_FILE}: {error}") from error
        return publication


def check_sizes(directory: Path, files: Sequence[ArtifactFile]) -> None:
    """Raise unless each of `files` is there with its size; nothing is read.

    Raises:
        CorruptDataError: One is missing, no file, or has another size.
    """
    problems = [f"{file.name} {problem}" for file in files if (problem := _size_problem(directory, file))]
    if problems:
        raise CorruptDataError(f"{directory} is damaged: {'; '.join(problems)}; restore the files or retrain")


def check_files(directory: Path) -> list[FileCheck]:
    """Read every file of a published version and return what was found, in the order of its publication.

    Files that do not belong there come last; hidden ones are the file system's.

    Raises:
        CorruptDataError: There is no readable publication.
    """
    published = Publication.read(directory).files
    checks = [FileCheck(file.name, _problem(directory, file)) for file in published]
    known = {file.name for file in published}
    added = sorted(entry.name for entry in directory.iterdir() if entry.name not in known and entry.name[0] != ".")
    return checks + [FileCheck(name, "was added after it was published") for name in added]


def check_publication(directory: Path) -> Publication | None:
    """Return the publication of a published version whose files are those that were published.

    An artifact that is in no store yet has no publication and nothing to compare with: safetensors notice no flipped
    bit, so only a stored SHA-256 does. Of such a one the answer is None.

    Raises:
        CorruptDataError: A file differs or was added.
    """
    if not (directory / PUBLICATION_FILE).is_file():
        return None
    problems = [f"{check.name} {check.problem}" for check in check_files(directory) if check.problem]
    if problems:
        raise CorruptDataError(f"{directory} is damaged: {'; '.join(problems)}; restore the files or retrain")
    return Publication.read(directory)


def _problem(directory: Path, file: ArtifactFile) -> str:
    if problem := _size_problem(directory, file):
        return problem
    try:
        found = hash_file(directory / file.name)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found.sha256 == file.sha256 else "has not the bytes that were published"


def _size_problem(directory: Path, file: ArtifactFile) -> str:
    path = directory / file.name
    if path.is_symlink() or not path.is_file():
        return "is missing"
    size_bytes = path.stat().st_size
    return "" if size_bytes == file.size_bytes else f"has {size_bytes} bytes instead of {file.size_bytes}"


def _file(name: object, size_bytes: object, sha256: object) -> ArtifactFile:
    if name not in (*TRAVELLING_FILES, *DERIVED_FILES):
        raise ValueError(f"{name!r} is no file of an artifact")
    return ArtifactFile(_text(name), _count(size_bytes), bytes.fromhex(_text(sha256)).hex())


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # refuses half a surrogate pair, which JSON can hold and nothing else
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise TypeError(f"{value!r} is no number from 0 to {_LARGEST}")
    return value
