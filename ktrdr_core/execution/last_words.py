"""What a worker's log ends with, for the message of a failure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES, _TAIL_LINES, _TAIL_LINE_CHARS = 16 * 1024, 3, 200


@dataclass(frozen=True, slots=True)
class LastWords:
    """The end of a log: the file, and up to 16 kB of its text."""

    path: Path
    text: str

    def __str__(self) -> str:
        """Return where the log is and its telling last lines, if any: "see PATH, which ends: A | B | C"."""
        lines = [line.strip()[:_TAIL_LINE_CHARS] for line in self.text.splitlines() if line.strip()]
        for index, line in enumerate(lines):
            # After a crash in C code faulthandler dumps every thread's stack below this line.
            if line.startswith("Fatal Python error"):
                lines = lines[: index + 1]
                break
        return f"see {self.path}, which ends: {' | '.join(lines[-_TAIL_LINES:])}" if lines else f"see {self.path}"


def read_last_words(path: Path) -> LastWords:
    """Return the end of the log; without text if it cannot be read. Blocking."""
    try:
        with path.open("rb") as log_file:
            log_file.seek(0, os.SEEK_END)
            log_file.seek(max(0, log_file.tell() - _TAIL_BYTES))
            return LastWords(path, log_file.read().decode(errors="replace"))
    except OSError:
        return LastWords(path, "")
