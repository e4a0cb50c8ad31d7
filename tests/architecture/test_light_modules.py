"""Describing indicators needs none of what computes them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit.eventually import PATIENCE_S

HEAVY = ["talib", "pandas", "torch", "numba"]


def run_without(modules: list[str], code: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "module", ["ktrdr_core.config.indicator_page", "ktrdr_core.indicators.registry", "ktrdr_core.indicators.compute"]
)
def test_module_loads_without_ta_lib_and_pandas(module: str) -> None:
    done = run_without(HEAVY, f"import {module}")
    assert done.returncode == 0, done.stderr


def test_indicators_are_told_without_ta_lib_pandas_torch_or_a_backend() -> None:
    done = run_without([*HEAVY, "grpc"], "from ktrdr_client.cli.run import run; sys.exit(run(['indicators', 'rsi']))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rsi: relative strength index.")
