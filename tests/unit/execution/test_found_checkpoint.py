"""Which checkpoint a killed worker left."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.execution.found_checkpoint import CHECKPOINTS_NAME, find_checkpoint
from ktrdr_core.training.checkpoint_file import FORMAT_VERSION, STATE_KEY, LoopPosition
from tests.kit.builders import REPOSITORY
from tests.kit.engine import write_checkpoint


def leave(work_dir: Path, name: str, epoch: int, batches_done: int = 0) -> Path:
    path = work_dir / CHECKPOINTS_NAME / name
    write_checkpoint(path, LoopPosition(epoch=epoch, batches_done=batches_done))
    return path


def test_a_session_that_left_nothing_has_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    (tmp_path / CHECKPOINTS_NAME).mkdir()
    assert find_checkpoint(tmp_path) is None


def test_the_one_that_came_furthest_is_found_whatever_its_name(tmp_path: Path) -> None:
    leave(tmp_path, "timed_00000009.safetensors", 2)
    furthest = leave(tmp_path, "checkpoint.safetensors", 3, 4)
    leave(tmp_path, "epoch_00000002.safetensors", 3)
    content = furthest.read_bytes()
    assert find_checkpoint(tmp_path) == SessionCheckpoint(
        path=furthest, epoch=2, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


@pytest.mark.parametrize("cut", [1, 60, -1, -64])
def test_a_torn_one_is_left_out(tmp_path: Path, cut: int) -> None:
    whole = leave(tmp_path, "a.safetensors", 2)
    torn = leave(tmp_path, "b.safetensors", 3)
    torn.write_bytes(torn.read_bytes()[:cut])
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.path == whole


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"format_version": 1, "epoch": 9, "batches_done": 0},
        {"format_version": FORMAT_VERSION, "epoch": 9},
        {"format_version": FORMAT_VERSION, "epoch": "9", "batches_done": 0},
        [],
    ],
)
def test_another_file_is_left_out(tmp_path: Path, state: object) -> None:
    path = leave(tmp_path, "a.safetensors", 2)
    path.write_bytes(save({"weight": np.zeros(2)}, {STATE_KEY: json.dumps(state)}))
    leave(tmp_path, ".b.safetensors.0123", 5).rename(path.with_name(".c.safetensors"))
    assert find_checkpoint(tmp_path) is None


def test_finding_one_loads_no_torch(tmp_path: Path) -> None:
    leave(tmp_path, "a.safetensors", 2)
    script = (
        "import sys; from pathlib import Path; from ktrdr_core.execution.found_checkpoint import find_checkpoint\n"
        f"assert find_checkpoint(Path({str(tmp_path)!r})) is not None\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
