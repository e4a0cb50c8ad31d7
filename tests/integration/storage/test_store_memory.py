"""A store never has a weights file in memory, and reads it as often as it must: processes of their own, looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.builders import REPOSITORY
from tests.kit.eventually import PATIENCE_S

WEIGHTS_BYTES = 256 << 20
MAX_GROWTH_BYTES = 24 << 20

PROGRAM = """
import sys, threading
from pathlib import Path
from ktrdr_core.storage.artifact_files import artifact_files
from tests.kit.artifacts import write_large_artifact
from tests.kit.model_shelf import Shelf

def anonymous_bytes():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def read_bytes():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])

def change(name, weights_bytes):
    shelf = Shelf(root / f"{name}{weights_bytes}")
    directory = shelf.root / "staged"
    write_large_artifact(directory, weights_bytes)
    files = artifact_files(directory) if name == "verified" else None
    if name in ("look", "load"):
        shelf.storage.publish(directory)
    yield
    if name in ("publish", "verified"):
        shelf.storage.publish(directory, files=files)
    elif name == "aside":
        shelf.storage.keep_aside(directory, training_id="t1", attempt=1)
    elif name == "look":
        for storage in (shelf.storage, shelf.reopen()):
            storage.list()
            storage.get("small")
            storage.find_by_training("t1")
    elif name == "load":
        shelf.storage.load("small")
        shelf.storage.verify("small")
    elif name == "derive":
        from ktrdr_core.storage.torch_files import derive_torch_files
        derive_torch_files(directory)
    yield

def watch():
    while not is_over.wait(0.002):
        seen.append(anonymous_bytes())

root = Path(sys.argv[1])
for _ in change(sys.argv[2], 1 << 20):
    pass
steps = change(sys.argv[2], int(sys.argv[3]))
next(steps)
is_over, seen, read = threading.Event(), [idle := anonymous_bytes()], read_bytes()
thread = threading.Thread(target=watch)
thread.start()
next(steps)
read = read_bytes() - read
is_over.set()
thread.join()
seen.append(anonymous_bytes())  # what takes less than a look in between shows at least what it has kept
print(max(seen) - idle, len(seen), read)
"""


# How often each reads the weights; derived files are two, each made of weights that are mapped.
NUM_READS = {"publish": 2, "verified": 1, "aside": 2, "load": 2, "look": 0, "derive": 2}


@pytest.mark.parametrize("change", NUM_READS)
def test_memory_stays_far_below_the_weights(change: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), change, str(WEIGHTS_BYTES)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    growth, num_looks, read_bytes = map(int, done.stdout.split())
    assert num_looks > 2 or not NUM_READS[change]
    assert growth < MAX_GROWTH_BYTES
    assert read_bytes / WEIGHTS_BYTES == pytest.approx(NUM_READS[change], abs=0.05)
