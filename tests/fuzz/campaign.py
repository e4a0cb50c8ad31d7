"""Runs targets with atheris: each in a process of its own, guided by the coverage of our code.

What broke is kept in `tests/fuzz/corpus/<target>/`, where `make test` tries it again for ever.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
INPUT_LIMIT_S = 10  # an input that takes longer is a defect
_MAX_INPUT_BYTES = 8192
# In memory, where there is such a place: many inputs become files that are fsynced.
_WORK_DIR = next((path for path in ("/dev/shm",) if os.access(path, os.W_OK)), None)  # noqa: S108


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one target: how many inputs were tried, and what broke ("" if nothing)."""

    target: str
    num_inputs: int
    defect: str


def corpus_of(target: str) -> list[bytes]:
    """Return the inputs that once broke a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def has_atheris() -> bool:
    return find_spec("atheris") is not None


def run_campaign(target: str, seeds: Sequence[bytes], seconds: int) -> Outcome:
    """Fuzz one target for so long in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-fuzz-", dir=_WORK_DIR) as name:
        directory = Path(name)
        for part in ("corpus", "work", "broken"):
            (directory / part).mkdir()
        for number, seed in enumerate((*seeds, *corpus_of(target))):
            (directory / "corpus" / f"seed{number}").write_bytes(seed)
        command = [
            sys.executable, "-m", "tests.fuzz.guided", target, str(directory / "work"),
            f"-max_total_time={seconds}", f"-timeout={INPUT_LIMIT_S}", "-rss_limit_mb=0",
            f"-max_len={_MAX_INPUT_BYTES}", "-print_final_stats=1", f"-artifact_prefix={directory / 'broken'}/",
            str(directory / "corpus"),
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds + 300,
            env={**os.environ, "TMPDIR": name},
        )  # fmt: skip
        tried = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
        num_inputs = int(tried[1]) if tried else 0
        if done.returncode == 0 and num_inputs:
            return Outcome(target=target, num_inputs=num_inputs, defect="")
        for path in (directory / "broken").iterdir():
            (CORPUS / target).mkdir(parents=True, exist_ok=True)
            shutil.move(path, CORPUS / target / path.name)
        # The traceback is on stdout; what libFuzzer tells of itself is not of interest.
        told = "\n".join(
            line for line in done.stderr.splitlines() if not line.startswith(("INFO:", "WARNING:", "stat:"))
        )
        return Outcome(target=target, num_inputs=num_inputs, defect=f"{done.stdout[-4000:]}\n{told[-2000:]}")
