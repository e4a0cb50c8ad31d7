"""The committed Python code of the protos is what the committed protos generate."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

from tests.kit.eventually import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "clients/python"


def test_generated_code_is_what_the_protos_generate(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    outputs = [
        f"--{flag}={prefix}{tmp_path}"
        for flag, prefix in (
            ("python_out", ""),
            ("mypy_out", "quiet:"),
            ("grpc_python_out", ""),
            ("mypy_grpc_out", "quiet:"),
        )
    ]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *outputs, *protos],
        cwd=ROOT,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        timeout=PATIENCE_S,
    )
    fresh = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*_pb2*")}
    committed = {
        str(path.relative_to(GENERATED))
        for path in (GENERATED / "ktrdr").rglob("*_pb2*")
        if "__pycache__" not in path.parts
    }
    assert committed == fresh, "files differ; run: make proto"
    _, different, errors = filecmp.cmpfiles(tmp_path, GENERATED, sorted(fresh), shallow=False)
    assert not different + errors, "generated code is stale; run: make proto"
