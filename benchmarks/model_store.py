"""List and get with 10,000 models in the store, against walking its directories and reading their JSON."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from uuid import uuid4

from benchmarks.report import BenchRow
from benchmarks.sample import BARS_DIR, build_spec
from ktrdr_core.clock import from_iso
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import DataMode
from ktrdr_core.storage.artifact import load_result
from ktrdr_core.storage.artifact_files import (
    CONFIG_FILE,
    FEATURES_FILE,
    METADATA_FILE,
    METRICS_FILE,
    WEIGHTS_FILE,
    artifact_files,
    digest_of_files,
    hash_file,
)
from ktrdr_core.storage.model_query import ModelOrder, ModelQuery
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.publication import PUBLICATION_FILE, Publication
from ktrdr_core.training.run_job import run_training

NUM_STRATEGIES = 20
NUM_SYMBOLS = 5
NUM_SCORES = 97
PAGE = 50
FIRST_TIME = from_iso("2026-01-01T00:00:00.000000Z")
AIM_MS = 10.0


def _fill(root: Path, num_models: int) -> None:
    """Make a store of `num_models` versions of one trained model, each with its own identity, most files shared."""
    trained = ModelStorage(root.with_name("trained"))
    spec = replace(build_spec(2), data_mode=DataMode.LOCAL)
    result = run_training(spec, bar_store=DirectoryBarStore(BARS_DIR), model_storage=trained)
    source = Path(result["model_path"])
    scored = _write_scores(root.with_name("scores"), source)
    shared = {file.name: file for file in artifact_files(source)}
    metadata = json.loads((source / METADATA_FILE).read_bytes())
    for number in range(num_models):
        strategy = f"strategy{number % NUM_STRATEGIES:02d}"
        symbol = f"SYM{number // NUM_STRATEGIES % NUM_SYMBOLS}"
        version = number // (NUM_STRATEGIES * NUM_SYMBOLS) + 1
        directory = root / strategy / f"{symbol}_1h_v{version}"
        directory.mkdir(parents=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE, FEATURES_FILE):
            os.link(source / name, directory / name)
        os.link(scored[number % NUM_SCORES], directory / METRICS_FILE)
        own = metadata | {"model_id": str(uuid4()), "symbols": [symbol]}
        (directory / METADATA_FILE).write_text(json.dumps(own, indent=2))
        files = [shared[name] for name in (WEIGHTS_FILE, CONFIG_FILE)]
        files += [replace(hash_file(directory / METRICS_FILE), name=METRICS_FILE), shared[FEATURES_FILE]]
        files.append(hash_file(directory / METADATA_FILE))
        publication = Publication(
            training_id=str(uuid4()),
            attempt=1,
            digest=digest_of_files(files),
            create_time=FIRST_TIME.replace(microsecond=number % 10**6, hour=number % 24, day=number % 28 + 1),
            files=tuple(files),
        )
        (directory / PUBLICATION_FILE).write_bytes(publication.render())
        link = directory.with_name(f"{symbol}_1h_latest")
        link.unlink(missing_ok=True)
        link.symlink_to(directory.name)
    long_ago = time.time() - 60
    for parent in root.iterdir():
        os.utime(parent, (long_ago, long_ago))


def _write_scores(directory: Path, source: Path) -> list[Path]:
    directory.mkdir()
    metrics = json.loads((source / METRICS_FILE).read_bytes())
    for number in range(NUM_SCORES):
        metrics["test_metrics"]["accuracy"] = (number * 31 % NUM_SCORES) / NUM_SCORES
        (directory / f"{number:03d}").write_text(json.dumps(metrics, indent=2))
    return sorted(directory.iterdir())


def _walk(root: Path) -> list[tuple[Publication, TrainingResult]]:
    """Read what each directory tells, as a store without an index must for every list."""
    found = []
    for directory in root.glob("*/*_v*"):
        publication = Publication.read(directory)
        found.append((publication, load_result(directory, digest=publication.digest)))
    return sorted(found, key=lambda each: each[0].create_time, reverse=True)


def _ms(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    seconds = []
    for _ in range(repeats):
        begin_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin_s)
    return 1000 * median(seconds)


def run(quick: bool) -> list[BenchRow]:
    """Look at a store of 10,000 models (quick: 1,000)."""
    num_models, repeats = (1_000, 20) if quick else (10_000, 50)
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        root = Path(name) / "models"
        _fill(root, num_models)
        storage = ModelStorage(root)
        begin_s = time.perf_counter()
        newest = storage.query(ModelQuery(), limit=PAGE)
        rows = [
            BenchRow(
                name=f"first list of {num_models:,} models, the index is made",
                value=time.perf_counter() - begin_s,
                unit="s",
            )
        ]
        walk_ms = _ms(lambda: _walk(root), 1)
        accuracy = ModelQuery(order=ModelOrder.TEST_ACCURACY)
        middle = storage.query(accuracy, limit=500).next
        some = storage.query(ModelQuery(symbol="SYM3"), limit=PAGE).models[-1]
        calls: dict[str, Callable[[], object]] = {
            f"list {PAGE} models, newest first": lambda: storage.query(ModelQuery(), limit=PAGE),
            f"list the next {PAGE}": lambda: storage.query(ModelQuery(), limit=PAGE, after=newest.next),
            f"list {PAGE}, best accuracy first": lambda: storage.query(accuracy, limit=PAGE),
            f"list {PAGE}, best accuracy first, from the 501st": lambda: storage.query(
                accuracy, limit=PAGE, after=middle
            ),
            f"list {PAGE} of a symbol": lambda: storage.query(ModelQuery(symbol="SYM3"), limit=PAGE),
            f"list {PAGE} of a strategy and a symbol, by accuracy": lambda: storage.query(
                replace(accuracy, strategy_name="strategy07", symbol="SYM3"), limit=PAGE
            ),
            f"list {PAGE} that latest points at": lambda: storage.query(ModelQuery(alias="latest"), limit=PAGE),
            "get by name": lambda: storage.get(some.name),
            "get by alias": lambda: storage.get(f"{some.name.rpartition('_v')[0]}_latest"),
            "get by strategy": lambda: storage.get("strategy07"),
            "get by model_id": lambda: storage.get(some.model_id),
            "open the store again and list": lambda: ModelStorage(root).query(ModelQuery(), limit=PAGE),
        }
        rows += [
            BenchRow(
                name=name,
                value=(value := _ms(call, repeats)),
                unit="ms",
                baseline_name="walking the directories and reading their JSON",
                baseline_value=walk_ms,
                ratio=walk_ms / value,
                aim=f"< {AIM_MS:g} ms",
            )
            for name, call in calls.items()
        ]
        changed = root / "strategy07"

        def list_after_a_change() -> None:
            os.utime(changed)
            storage.query(ModelQuery(), limit=PAGE)

        rows.append(
            BenchRow(
                name=f"list {PAGE}, right after a change of a strategy of {num_models // NUM_STRATEGIES} models",
                value=_ms(list_after_a_change, repeats),
                unit="ms",
                aim=f"< {AIM_MS:g} ms",
            )
        )
    return rows
