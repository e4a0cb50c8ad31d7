"""What a store knows of a version beyond the artifact itself, in a hidden file beside the artifact's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.errors import CorruptDataError
from ktrdr_core.storage.artifact import ArtifactFile, artifact_files

PUBLICATION_FILE = ".publication.json"


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
        try:
            raw = json.loads((directory / PUBLICATION_FILE).read_bytes())
            return cls(
                training_id=raw["training_id"],
                attempt=raw["attempt"],
                digest=raw["digest"],
                create_time=from_iso(raw["create_time"]),
                files=tuple(ArtifactFile(*file) for file in raw["files"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{directory} has no readable {PUBLICATION_FILE}: {error}") from error


def check_publication(directory: Path) -> None:
    """Raise unless the files of a published version are those that were published.

    An artifact that is in no store yet has no publication and nothing to compare with: safetensors notice no flipped
    bit, so only a stored SHA-256 does.

    Raises:
        CorruptDataError: A file differs or was added.
    """
    if not (directory / PUBLICATION_FILE).is_file():
        return
    published, found = Publication.read(directory).files, artifact_files(directory)
    differing = sorted({file.name for file in {*published} ^ {*found}})
    if differing:
        raise CorruptDataError(
            f"{', '.join(differing)} in {directory} differ from what was published; restore the files or retrain"
        )
