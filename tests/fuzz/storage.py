"""Targets of the model store: names that shall become paths, artifacts whose files say anything, tokens of pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from ktrdr_core.errors import InvalidInputError, KtrdrError
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES
from ktrdr_core.storage.model_query import ModelOrder, ModelQuery
from ktrdr_core.storage.model_storage import ModelStorage
from tests.fuzz.target import Decisions, Probe, Target
from tests.fuzz.watched_paths import confined
from tests.kit.artifacts import make_artifact

_EVIL = (
    "..", "../x", "../../etc/passwd", "/etc/passwd", "a/../../b", "small/../../x", "small/..", "small/EURUSD_1h_v1/..",
    "aside/..", "aside/../x", "small\0x", "small/EURUSD_1h_v1\0", "~", "~root/x", ".", "./small", ".staging/x",
    ".aside", ".index.sqlite", ".lock", "small/.publication.json", "con", "a" * 300, "a" * 100 + "/" + "b" * 300,
    "\u202e\u0000", "%2e%2e/x", "..\\x", "small//x", "small/EURUSD_1h_v1/model.safetensors", "file:../x?mode=rwc",
    "s\udcffx", "\U0001f4a9", "-rf", "small/EURUSD_1h_latest/../../..", "",
)  # fmt: skip
_VALUES: list[Any] = [None, [], {}, "../x", -1, 10**30, 1e999, True, [[]], {"": {}}, "\udcff"]
_SOUND = ("small", "small/EURUSD_1h_v1", "small/EURUSD_1h_latest", "small/EURUSD_1h_champion", "aside/t1-1")


def _build_names(directory: Path) -> Probe:
    """Return a probe that gives one text wherever a name is taken."""
    home = directory / "home"
    root = home / "models"
    incoming = home / "incoming"
    for beside in (home / "models-beside", incoming):
        beside.mkdir(parents=True)
    (home / "secret").write_text("untouched")
    storage = ModelStorage(root)
    for _ in range(2):
        storage.save(make_artifact())
    storage.set_alias("small/EURUSD_1h", "champion", 1)

    def probe(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        for use in _uses(storage, text, incoming / "artifact"):
            with confined(root, incoming):
                _try_use(use, root)
        assert sorted(path.name for path in home.iterdir()) == ["incoming", "models", "models-beside", "secret"]
        assert (home / "secret").read_text() == "untouched"
        assert storage.get("small/EURUSD_1h_v1").aliases == ("champion",)

    return probe


def _uses(storage: ModelStorage, text: str, artifact: Path) -> list[Callable[[], Any]]:
    name, _, rest = text.partition("\n")
    # What comes by the wire, or is in a strategy file, is UTF-8; only what a person types may be anything.
    told = text.encode(errors="replace").decode()

    def publish_as(**fields: Any) -> Callable[[], Any]:
        def publish() -> Any:
            write_artifact(artifact, make_artifact(**fields))
            return _forget(storage, storage.publish(artifact))

        return publish

    def keep_aside() -> Any:
        write_artifact(artifact, make_artifact())
        return _forget(storage, storage.keep_aside(artifact, training_id=text, attempt=1))

    def read_file() -> None:
        with storage.open_file(name, rest) as (_, stream):
            stream.read(1)

    def read_sound() -> None:
        with storage.open_file("small/EURUSD_1h_v1", text) as (_, stream):
            stream.read(1)

    return [
        lambda: storage.get(text),
        lambda: storage.load(text),
        lambda: storage.verify(text)[0],
        lambda: storage.find_by_training(told),
        lambda: storage.list_by_training(told),
        lambda: storage.list(text),
        lambda: storage.find_file(text, 10),
        lambda: storage.query(ModelQuery(strategy_name=text, symbol=rest), limit=1),
        lambda: storage.query(ModelQuery(training_id=text, alias=name, series_digest=rest), limit=1),
        lambda: storage.set_alias(text, "candidate", 1, expected=0),
        lambda: storage.set_alias("small/EURUSD_1h", name, 7),
        # Never "champion" itself, which is looked at afterwards.
        lambda: storage.set_alias("small/EURUSD_1h", text, 0) if text != "champion" else None,
        lambda: storage.delete(text) if text not in ("small/EURUSD_1h_v1", "small/EURUSD_1h_v2") else None,
        read_file,
        read_sound,
        keep_aside,
        publish_as(name=told),
        publish_as(symbols=tuple(told.split("\n"))),
        publish_as(timeframes=[told]),
    ]


def _forget(storage: ModelStorage, model: Any) -> Any:
    """Delete what was stored, so that the store stays small."""
    path = model.path
    assert path.is_dir()
    storage.delete(model.name, force=True)
    return model


def _try_use(use: Callable[[], Any], root: Path) -> None:
    try:
        answer = use()
    except KtrdrError:
        return
    path = getattr(answer, "path", answer)
    if isinstance(path, Path):
        assert path.resolve().is_relative_to(root.resolve()), path


def _names_seeds() -> list[bytes]:
    texts = [*_EVIL, *_SOUND, *(f"small/EURUSD_1h_v1\n{name}" for name in (*TRAVELLING_FILES, *_EVIL[:8]))]
    return [text.encode("utf-8", "surrogateescape") for text in texts]


def _build_artifact(directory: Path) -> Probe:
    """Return a probe that publishes an artifact, one of whose files is what the input says."""
    contents = make_artifact(name="fuzzed").render()

    def probe(data: bytes) -> None:
        name = TRAVELLING_FILES[data[0] % len(TRAVELLING_FILES)] if data else TRAVELLING_FILES[0]
        home = directory / uuid4().hex
        artifact = home / "artifact"
        artifact.mkdir(parents=True)
        for each, content in (contents | {name: data[1:]}).items():
            (artifact / each).write_bytes(content)
        try:
            storage = ModelStorage(home / "models")
            try:
                with confined(home / "models", artifact):
                    model = storage.publish(artifact)
            except KtrdrError:
                assert not list((home / "models").glob("*/*_v*"))
                assert storage.list() == []
                return
            assert [other.name for other in storage.list()] == [model.name]
            assert storage.load(model.name) == storage.get(model.name)
            for order in ModelOrder:
                assert len(storage.query(ModelQuery(order=order), limit=1).models) == 1
        finally:
            shutil.rmtree(home)

    return probe


def _artifact_seeds() -> list[bytes]:
    contents = make_artifact(name="fuzzed").render()
    seeds = [bytes([number]) + contents[name] for number, name in enumerate(TRAVELLING_FILES)]
    for number, name in enumerate(TRAVELLING_FILES[1:], start=1):
        raw = json.loads(contents[name])
        hostile: list[Any] = [[], None, 5, "text", {}, dict.fromkeys(raw), {key: [] for key in raw}]
        hostile += [raw | {key: value} for key in raw for value in _VALUES]
        hostile += [
            raw | {key: raw[key] | {inner: value}}
            for key in raw
            if isinstance(raw[key], dict)
            for inner in raw[key]
            for value in _VALUES
        ]
        seeds += [bytes([number]) + json.dumps(each).encode() for each in hostile]
        seeds.append(bytes([number]) + b"[" * 100_000)
        seeds.append(bytes([number]) + b'{"a":' * 100_000)
        seeds.append(bytes([number]) + b"9" * 100_000)
        seeds.append(bytes([number]) + json.dumps(raw | {"large": 2**64}).encode())
    return seeds


def _build_store_token(directory: Path) -> Probe:
    storage = ModelStorage(directory / "models")
    for number in range(3):
        storage.save(make_artifact(seed=number))
    orders = list(ModelOrder)

    def probe(data: bytes) -> None:
        decisions = Decisions(data)
        order = decisions.choice(orders)
        token = decisions.rest().decode("utf-8", "surrogateescape")
        try:
            page = storage.query(ModelQuery(order=order), limit=2, after=token)
        except InvalidInputError:
            return
        assert len(page.models) <= 2

    return probe


def _store_token_seeds() -> list[bytes]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="ktrdr-fuzz-") as name:
        storage = ModelStorage(Path(name))
        for number in range(3):
            storage.save(make_artifact(seed=number))
        return [
            bytes([number]) + storage.query(ModelQuery(order=order), limit=1).next.encode()
            for number, order in enumerate(ModelOrder)
        ]


STORAGE = (
    Target(name="names", build=_build_names, seeds=_names_seeds),
    Target(name="artifact", build=_build_artifact, seeds=_artifact_seeds),
    Target(name="store_token", build=_build_store_token, seeds=_store_token_seeds),
)
