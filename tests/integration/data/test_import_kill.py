"""An import that is killed leaves the old series whole, wherever it was: before every step it takes on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.importer import STAGING_PREFIX, IfExists, ImportRequest, stage_import
from tests.kit.builders import REPOSITORY, make_bars, write_bars_csv
from tests.kit.eventually import PATIENCE_S

# Forks once for each step: the child kills itself with SIGKILL before step n of an import, n = 1, 2, ... until one
# ends; after each, the parent reads the store as the next program would. Steps are what Python is about to do in the
# store: open, rename, remove, make a directory.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import pyarrow.csv, pyarrow.parquet  # once, not in each child
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.importer import IfExists, ImportRequest, stage_import
from ktrdr_core.errors import SeriesNotFoundError

store, file, if_exists = Path(sys.argv[1]), Path(sys.argv[2]), IfExists(sys.argv[3])
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
seen = []
num_steps = 0

def kill_before(step):
    def hook(event, arguments):
        global num_steps
        if event in STEPS and str(store) in str(arguments[0]):
            num_steps += 1
            if num_steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for step in range(1, 500):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        kill_before(step)
        request = ImportRequest(files=(file,), store=store, symbol="EURUSD", timeframe="1d", if_exists=if_exists)
        with stage_import(request) as staged:
            staged.publish()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    try:
        digest = DirectoryBarStore(store).load("EURUSD", "1d").digest()
    except SeriesNotFoundError:
        digest = "none"
    seen.append([status, digest])
    if status == 0 or digest == sys.argv[4]:
        break
print(json.dumps(seen))
"""
NEW = make_bars(600, timeframe="1d")  # two years, so two files
OLD = NEW.head(500)
OTHER = make_bars(600, seed=3, timeframe="1d")


def run_import(store: Path, file: Path, if_exists: IfExists) -> None:
    request = ImportRequest(files=(file,), store=store, symbol="EURUSD", timeframe="1d", if_exists=if_exists)
    with stage_import(request) as staged:
        staged.publish()


@pytest.mark.parametrize("if_exists", [IfExists.REPLACE, IfExists.REFUSE, IfExists.MERGE])
def test_killed_import_leaves_the_old_series_or_the_new_one(tmp_path: Path, if_exists: IfExists) -> None:
    store = tmp_path / "store"
    new = NEW if if_exists is IfExists.MERGE else OTHER
    before = "none"
    if if_exists is not IfExists.REFUSE:
        run_import(store, write_bars_csv(tmp_path, OLD), IfExists.REFUSE)
        before = OLD.digest()
    file = write_bars_csv(tmp_path, new)

    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(store), str(file), if_exists.value, new.digest()],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    killed, last = seen[:-1], seen[-1]
    assert len(killed) >= 12
    assert {status for status, _ in killed} == {signal.SIGKILL}
    assert {digest for _, digest in killed} == {before}
    assert last[1] == new.digest()

    run_import(store, file, IfExists.REPLACE)
    assert DirectoryBarStore(store).load("EURUSD", "1d").digest() == new.digest()
    assert not list(store.glob(f"{STAGING_PREFIX}*"))
    assert sorted(path.name[:5] for path in (store / "EURUSD_1d").iterdir()) == ["2017-", "2018-", "manif"]
