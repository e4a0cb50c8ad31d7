"""One owner per directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.errors import IllegalStateError


def test_a_second_owner_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "state" / "backend.lock"
    first, second = (DirectoryLock(path, owner="backend") for _ in range(2))
    first.acquire()

    with pytest.raises(IllegalStateError, match=f"another backend uses {path.parent}; .* another --data-dir"):
        second.acquire()
    second.release()
    with pytest.raises(IllegalStateError):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
