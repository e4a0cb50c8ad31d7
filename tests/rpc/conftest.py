from __future__ import annotations

import asyncio

import pytest
from ktrdr_client.cli.run import run

from tests.kit.cli import Ran, Run


@pytest.fixture
def ktrdr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a thread of this process; not `train` or `watch`, which answer signals."""
    for name in ("KTRDR_BACKEND", "KTRDR_DATA_DIR", "KTRDR_BARS_DIR", "KTRDR_STRATEGIES_DIR", "KTRDR_USER"):
        monkeypatch.delenv(name, raising=False)

    async def call(address: str, *arguments: str) -> Ran:
        capsys.readouterr()
        code = await asyncio.to_thread(run, ["--backend", address, *arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
