"""Imports go one way; the contracts are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kit.eventually import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def test_imports_keep_the_order_of_the_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout
