"""An export never has weights in memory twice: processes of their own, for their peaks are looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.domain.export_format import ExportFormat
from ktrdr_core.storage.artifact_files import CONFIG_FILE, WEIGHTS_FILE
from tests.kit.builders import REPOSITORY, make_bars, strategy
from tests.kit.eventually import PATIENCE_S
from tests.kit.trading_models import store_network

WIDTH = 6_000
WEIGHTS_BYTES = 4 * WIDTH * WIDTH  # 137 MiB, and a little for the other layers
MAX_GROWTH_BYTES = 24 << 20
TRACING_BYTES = 64 << 20

PROGRAM = """
import sys, threading
from pathlib import Path
from ktrdr_core.domain.export_format import ExportFormat
from ktrdr_core.training.export import export_model

def anonymous_bytes():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def export(name):
    export_model(root / name, root / f"{name}.out", ExportFormat(sys.argv[2]), name="x", force=True)

def watch():
    while not is_over.wait(0.002):
        seen.append(anonymous_bytes())

root = Path(sys.argv[1])
export("small")
is_over, seen = threading.Event(), [idle := anonymous_bytes()]
thread = threading.Thread(target=watch)
thread.start()
export("large")
is_over.set()
thread.join()
print(max(seen) - idle, len(seen))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model, and the same network with layers that are wide."""
    root = tmp_path_factory.mktemp("models")
    for name in ("small", "large"):
        store_network(root / name, strategy(), [SymbolBars(make_bars(600))])
    config = json.loads((root / "large" / CONFIG_FILE).read_bytes())
    network = config["model_config"]["network"]
    network["hidden_layers"] = [WIDTH, WIDTH]
    (root / "large" / CONFIG_FILE).write_text(json.dumps(config))
    widths = (network["input_size"], WIDTH, WIDTH, 3)
    weights = {}
    for index in range(3):
        weights[f"layers.{index}.weight"] = np.full((widths[index + 1], widths[index]), 0.01, dtype=np.float32)
        weights[f"layers.{index}.bias"] = np.zeros(widths[index + 1], dtype=np.float32)
    save_file(weights, root / "large" / WEIGHTS_FILE)
    return root


@pytest.mark.parametrize(
    ("export_format", "limit_bytes"),
    [
        (ExportFormat.PT, MAX_GROWTH_BYTES),
        (ExportFormat.FULL, MAX_GROWTH_BYTES),
        (ExportFormat.ONNX, WEIGHTS_BYTES + TRACING_BYTES),  # the network that is traced has them once
    ],
)
def test_memory_stays_within_the_weights(root: Path, export_format: ExportFormat, limit_bytes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), export_format.value],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    growth_bytes, num_seen = map(int, done.stdout.split())
    assert num_seen > 5
    assert growth_bytes < limit_bytes, f"grew by {growth_bytes >> 20} MiB"
    files = sorted(path.name for path in root.glob("large.out*"))
    assert sum((root / name).stat().st_size for name in files) > WEIGHTS_BYTES
    for name in files:
        (root / name).unlink()
