"""SHA-256 of an upload and of each of its files, in one pass where the bytes come in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from backend_service.upload_log import read_pieces
from backend_service.upload_plan import FileSpan, spans_of
from ktrdr_core.storage.artifact_files import ArtifactFile


class UploadDigests:
    """Takes bytes as they come; those that did not come by here, or not in order, are read at the end.

    Args:
        spans: The files.
    """

    def __init__(self, spans: tuple[FileSpan, ...]) -> None:
        self._spans = spans
        self._position = 0
        self._whole = hashlib.sha256()
        self._file = hashlib.sha256()
        self._index = 0
        self.files: dict[str, str] = {}
        """SHA-256 of the files that are whole, by name, hex."""

    @property
    def whole(self) -> str:
        """SHA-256 of the bytes so far, hex."""
        return self._whole.hexdigest()

    def take(self, offset: int, raw: bytes) -> None:
        """Take bytes, if they are the next ones."""
        if offset == self._position:
            self._add(memoryview(raw))

    def read_rest(self, files_dir: Path) -> None:
        """Read what has not come by here."""
        for piece in read_pieces(files_dir, self._spans, self._position, self._spans[-1].end):
            self._add(memoryview(piece))

    def _add(self, raw: memoryview) -> None:
        while raw:
            span = self._spans[self._index]
            piece = raw[: span.end - self._position]
            self._whole.update(piece)
            if self._index:  # the first file is the beginning of the whole: it needs no digest of its own
                self._file.update(piece)
            self._position += len(piece)
            raw = raw[len(piece) :]
            if self._position == span.end:
                self.files[span.file.name] = self._file.hexdigest() if self._index else self._whole.hexdigest()
                self._file = hashlib.sha256()
                self._index += 1


def digest_of(directory: Path, files: Iterable[ArtifactFile]) -> str:
    """Return the SHA-256, hex, that an upload of these files of `directory` declares."""
    digests = UploadDigests(tuple(spans_of(files)))
    digests.read_rest(directory)
    return digests.whole
