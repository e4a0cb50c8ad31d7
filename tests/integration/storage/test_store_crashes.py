"""A writer that is killed at any step leaves a store that is whole: see tests/kit/store_crashes.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.builders import REPOSITORY
from tests.kit.eventually import PATIENCE_S
from tests.kit.store_crashes import OPERATIONS

# As many as each has at least; fewer would mean that the steps are no longer seen.
MIN_STEPS = {"publish": 30, "publish the first": 30, "keep aside": 20}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_store_is_whole_after_a_kill_at_every_step(operation: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.store_crashes", operation, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["num_kills"] >= MIN_STEPS.get(operation, 8), report
