"""The sums of an artifact, and when those that are kept beside it count."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_core.errors import NotFoundError
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, artifact_digest, hash_file
from ktrdr_core.storage.artifact_sums import ArtifactSums, read_sums, sums_path, write_sums
from ktrdr_core.storage.staging import StagedStorage
from tests.kit.artifacts import make_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return StagedStorage(tmp_path / "artifact").save(make_artifact()).path


def test_sums_are_those_of_the_files_and_of_all_their_bytes(artifact: Path) -> None:
    sums = ArtifactSums.of(artifact)
    assert sums.files == tuple(hash_file(artifact / name) for name in TRAVELLING_FILES)
    content = b"".join((artifact / name).read_bytes() for name in TRAVELLING_FILES)
    assert sums.sha256 == hashlib.sha256(content).hexdigest()
    assert sums.artifact_digest == artifact_digest(artifact)


def test_saved_artifact_has_its_sums_beside_it(artifact: Path) -> None:
    assert read_sums(artifact) == ArtifactSums.of(artifact)
    assert {path.name for path in artifact.iterdir()} == set(TRAVELLING_FILES)


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_sums_of_files_of_other_sizes_do_not_count(artifact: Path, name: str) -> None:
    with (artifact / name).open("ab") as file:
        file.write(b" ")
    assert read_sums(artifact) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"files": [], "sha256": ""}', b'{"files": [["x"]], "sha256": ""}', b"\xff"]
)
def test_sums_that_cannot_be_read_do_not_count(artifact: Path, content: bytes) -> None:
    sums_path(artifact).write_bytes(content)
    assert read_sums(artifact) is None


@pytest.mark.parametrize("digest", ["", "00", "x" * 64, 7, None])
def test_sums_that_are_no_digests_do_not_count(artifact: Path, digest: Any) -> None:
    sums = ArtifactSums.of(artifact)
    write_sums(artifact, replace(sums, sha256=digest))
    assert read_sums(artifact) is None
    write_sums(artifact, replace(sums, files=(*sums.files[:-1], replace(sums.files[-1], sha256=digest))))
    assert read_sums(artifact) is None


def test_sums_that_are_not_there_do_not_count(artifact: Path) -> None:
    sums_path(artifact).unlink()
    assert read_sums(artifact) is None


def test_sums_of_an_artifact_that_is_not_complete_are_refused(artifact: Path) -> None:
    sums = ArtifactSums.of(artifact)
    (artifact / "metrics.json").unlink()
    with pytest.raises(NotFoundError, match=r"metrics\.json is missing"):
        ArtifactSums.of(artifact)
    write_sums(artifact, sums)
    assert read_sums(artifact) is None
