"""What the README tells is what happens."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from tests.kit.cli import embedded_cli
from tests.kit.documents import fenced_blocks
from tests.kit.eventually import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def shape_of(line: str) -> str:
    """Return the line without what differs from run to run: identities, paths, times, figures, column widths."""
    line = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{64}", "ID", line)
    line = re.sub(r"\S*/models/", "MODELS/", line)
    line = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", line)
    line = re.sub(r"\b(BUY|HOLD|SELL)\b(?=\s+[\d.]+ )", "CLASS", line)
    line = re.sub(r"[-+]?\d[\d,.:]*", "#", line)
    return re.sub(r"\s+", " ", line).strip()


def test_transcript_of_make_demo_is_what_make_demo_prints(tmp_path: Path) -> None:
    (told,) = fenced_blocks(README, "text")["What `make demo` prints"]
    done = subprocess.run(
        ["make", "demo", f"DEMO_DIR={tmp_path / 'demo'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=360,
        env={**os.environ, "KTRDR_EMBEDDED_IDLE_S": "5"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {
        shape_of(line) for line in (done.stdout + done.stderr).replace(str(tmp_path / "demo"), ".demo").splitlines()
    }
    missing = [line for line in told.splitlines() if line.strip() not in {"", "..."} and shape_of(line) not in printed]
    assert missing == []


def test_commands_of_the_readme_work_line_by_line(tmp_path: Path) -> None:
    for name in ("data", "strategies"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = fenced_blocks(README)
    assert blocks.pop("Two commands") == ["make demo\nmake test"]
    lines = [line for own in blocks.values() for block in own for line in block.splitlines()]
    assert len(lines) == 10
    with embedded_cli(tmp_path / "state") as cli:
        for line in lines:
            words = shlex.split(line)
            assert words[0] == "ktrdr"
            with cli.start(*words[1:], cwd=tmp_path) as process:
                out, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, f"{line}\n{out}{err}"


def test_client_example_of_the_readme_is_the_tested_one() -> None:
    (told,) = fenced_blocks(README, "python")["Ten lines of Python"]
    example = (ROOT / "examples" / "train_and_watch.py").read_text().splitlines()
    assert [line for line in told.splitlines() if line] == [line for line in example[1:] if line]


def test_every_make_target_told_exists() -> None:
    told = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)(?:$|`)", README.read_text(), flags=re.MULTILINE))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert told
    assert told <= targets
