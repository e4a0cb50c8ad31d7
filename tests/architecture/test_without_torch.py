"""The client and both services load where torch and numba are not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit.eventually import PATIENCE_S


@pytest.mark.parametrize(
    "module",
    [
        "ktrdr_client.__main__",
        "ktrdr_client",
        "backend_service.app",
        "trainer_service.app",
        "ktrdr_core.training.preflight",
    ],
)
def test_module_loads_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = sys.modules['numba'] = sys.modules['scipy'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
