from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ktrdr_core.errors import CorruptDataError, InvalidInputError, ModelNotFoundError, NotFoundError
from ktrdr_core.storage.artifact_files import ArtifactFile, artifact_files
from tests.kit.model_shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_verified_files_are_not_hashed_again(shelf: Shelf) -> None:
    directory = shelf.stage()
    told = [ArtifactFile(file.name, file.size_bytes, hashlib.sha256(file.name.encode()).hexdigest())
            for file in artifact_files(directory)]  # fmt: skip
    model = shelf.storage.publish(directory, files=told)
    assert list(model.files) == told
    with pytest.raises(CorruptDataError):
        shelf.storage.load(model.name)


def test_derived_files_beside_verified_ones_are_published_too(shelf: Shelf) -> None:
    directory = shelf.stage()
    files = artifact_files(directory)
    (directory / "model.pt").write_bytes(b"state")
    model = shelf.storage.publish(directory, files=files)
    assert model.files[-1] == ArtifactFile("model.pt", 5, hashlib.sha256(b"state").hexdigest())
    assert shelf.storage.load(model.name) == model


def test_verified_files_must_be_there_whole(shelf: Shelf) -> None:
    directory = shelf.stage()
    files = artifact_files(directory)
    with pytest.raises(InvalidInputError, match="files of an artifact"):
        shelf.storage.publish(directory, files=files[:-1])
    (directory / "features.json").write_bytes(b"{}")
    with pytest.raises(CorruptDataError, match=r"features\.json has 2 bytes"):
        shelf.storage.publish(directory, files=files)
    (directory / "features.json").unlink()
    with pytest.raises(CorruptDataError, match=r"features\.json is missing"):
        shelf.storage.publish(directory, files=files)
    assert shelf.storage.list() == []


def test_what_a_writer_left_hidden_is_not_taken_along(shelf: Shelf) -> None:
    directory = shelf.stage()
    (directory / ".chunks.log").write_bytes(b"x")
    (directory / ".more").mkdir()
    model = shelf.storage.publish(directory)
    assert {path.name for path in model.path.iterdir()} == {".publication.json", *(file.name for file in model.files)}


def test_hard_links_into_another_version_are_published_and_leave_it_as_it_is(shelf: Shelf) -> None:
    first = shelf.publish(seed=1)
    directory = shelf.stage(seed=1)
    weights = shelf.storage.find_file(first.files[0].sha256, first.files[0].size_bytes)
    assert weights == first.path / "model.safetensors"
    (directory / "model.safetensors").unlink()
    os.link(weights, directory / "model.safetensors")
    second = shelf.storage.publish(directory)
    assert (second.path / "model.safetensors").stat().st_nlink == 2
    shelf.storage.delete(second.name)
    assert shelf.storage.load(first.name) == first


def test_file_is_found_by_its_bytes_alone(shelf: Shelf) -> None:
    model = shelf.publish()
    file = model.files[1]
    assert shelf.storage.find_file(file.sha256, file.size_bytes) == model.path / file.name
    assert shelf.storage.find_file(file.sha256, file.size_bytes + 1) is None
    assert shelf.storage.find_file("0" * 64, file.size_bytes) is None
    assert shelf.storage.find_file("../x", file.size_bytes) is None
    (model.path / file.name).unlink()
    assert shelf.storage.find_file(file.sha256, file.size_bytes) is None


def test_import_is_found_by_its_files(shelf: Shelf) -> None:
    first, second = shelf.publish(seed=1), shelf.publish(seed=1)
    assert shelf.storage.find_published("", 0, first.files) == shelf.storage.get(first.name)
    assert shelf.storage.find_published("", 0, second.files) == second
    assert shelf.storage.find_published("t1", 0, first.files) is None
    assert shelf.storage.find_published("", 1, first.files) is None
    mixed = (*first.files[:-1], second.files[-1])
    assert shelf.storage.find_published("", 0, mixed) == second  # equal but for metadata.json
    assert shelf.storage.find_published("", 0, (ArtifactFile("config.json", 1, "0" * 64), *first.files[1:])) is None


def test_open_file_reads_on_although_the_model_is_deleted(shelf: Shelf) -> None:
    model = shelf.publish()
    content = (model.path / "config.json").read_bytes()
    with shelf.storage.open_file(model.name, "config.json") as (file, stream):
        assert (file.name, file.size_bytes) == ("config.json", len(content))
        shelf.storage.delete(model.name)
        assert not model.path.exists()
        assert stream.read() == content
    with pytest.raises(ModelNotFoundError), shelf.storage.open_file(model.name, "config.json"):
        pass


@pytest.mark.parametrize(
    "file_name", ["", "other.json", "../EURUSD_1h_v1/config.json", ".publication.json", "/etc/passwd"]
)
def test_only_published_files_are_opened(shelf: Shelf, file_name: str) -> None:
    shelf.publish()
    with pytest.raises(NotFoundError, match=r"it has: model\.safetensors"), shelf.storage.open_file("small", file_name):
        pass


def test_open_file_refuses_what_was_not_published(shelf: Shelf) -> None:
    model = shelf.publish()
    secret = shelf.root / "secret"
    secret.write_bytes((model.path / "config.json").read_bytes())
    (model.path / "config.json").unlink()
    (model.path / "config.json").symlink_to(secret)
    with (
        pytest.raises(CorruptDataError, match=r"config\.json is missing"),
        shelf.storage.open_file("small", "config.json"),
    ):
        pass
    (model.path / "metrics.json").write_bytes(b"{}")
    with pytest.raises(CorruptDataError, match="2 bytes instead of"), shelf.storage.open_file("small", "metrics.json"):
        pass


def test_verify_names_what_differs_and_what_was_added(shelf: Shelf) -> None:
    model = shelf.publish()
    _, checks = shelf.storage.verify(model.name)
    assert [(check.name, check.problem) for check in checks] == [(file.name, "") for file in model.files]
    content = bytearray((model.path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model.path / "model.safetensors").write_bytes(content)
    (model.path / "run.py").write_text("import os")
    found, checks = shelf.storage.verify("small")
    assert found == model
    problems = {check.name: check.problem for check in checks if check.problem}
    assert list(problems) == ["model.safetensors", "run.py"]
    assert checks[-1].name == "run.py"
