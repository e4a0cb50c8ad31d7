"""The disk side of an upload."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ktrdr.models.v1.codec_pb2 import CODEC_NONE, CODEC_ZSTD

from backend_service.upload_files import (
    STAGING_SUFFIX,
    PartialUpload,
    UploadPlan,
    committed_size_bytes,
    remove_stale,
    upload_key,
)
from ktrdr_core.errors import CorruptDataError, InvalidUploadError
from ktrdr_core.rpc.chunks import encode_chunk
from ktrdr_core.storage.artifact import TRAVELLING_FILES, ArtifactFile


def a_plan(contents: list[bytes], *, write_offset: int = 0, sha256: str | None = None) -> UploadPlan:
    whole = b"".join(contents)
    return UploadPlan(
        training_id="t",
        attempt=1,
        total_size_bytes=len(whole),
        sha256=sha256 or hashlib.sha256(whole).hexdigest(),
        files=tuple(
            ArtifactFile(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in zip(TRAVELLING_FILES, contents, strict=True)
        ),
        write_offset=write_offset,
    )


def send(partial: PartialUpload, data: bytes, offset: int, size: int) -> None:
    for start in range(offset, len(data), size):
        partial.add(encode_chunk(start, data[start : start + size], CODEC_ZSTD))


@settings(max_examples=8)  # each one waits for the disk
@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), min_size=5, max_size=5),
    size=st.integers(1, 50),
    cut=st.integers(0, 200),
)
def test_chunks_joined_equal_the_files_whatever_the_cut(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], size: int, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("upload")
    data = b"".join(contents)
    first = PartialUpload(directory / "u", a_plan(contents))
    first.open()
    send(first, data[:cut], 0, size)
    first.close()
    stored = committed_size_bytes(directory / "u")
    assert stored == min(cut, len(data))
    second = PartialUpload(directory / "u", a_plan(contents, write_offset=stored))
    second.open()
    send(second, data, stored, size)
    second.close()
    second.split(directory / "staging")
    assert [(directory / "staging" / name).read_bytes() for name in TRAVELLING_FILES] == contents
    second.remove()
    assert not (directory / "u").exists()


CONTENTS = [b"weights", b"config", b"metrics", b"features", b"metadata"]


def test_what_was_not_made_safe_is_not_counted(tmp_path: Path) -> None:
    partial = PartialUpload(tmp_path / "u", a_plan(CONTENTS))
    partial.open()
    partial.add(encode_chunk(0, b"weights", CODEC_NONE))
    assert committed_size_bytes(tmp_path / "u") == 0
    partial.close()
    assert committed_size_bytes(tmp_path / "u") == 7
    with (tmp_path / "u" / "part").open("ab") as file:
        file.write(b"torn")  # a power cut after a write, before its fsync
    assert committed_size_bytes(tmp_path / "u") == 7


def test_upload_goes_on_anywhere_in_what_is_safe(tmp_path: Path) -> None:
    partial = PartialUpload(tmp_path / "u", a_plan(CONTENTS))
    partial.open()
    partial.add(encode_chunk(0, b"weights", CODEC_NONE))
    partial.close()
    with pytest.raises(InvalidUploadError, match="must be at most 7, was 8"):
        PartialUpload(tmp_path / "u", a_plan(CONTENTS, write_offset=8)).open()
    for offset in (7, 3, 0):  # more may have been made safe since the sender asked
        again = PartialUpload(tmp_path / "u", a_plan(CONTENTS, write_offset=offset))
        again.open()
        again.close()
        assert committed_size_bytes(tmp_path / "u") == offset


def test_wrong_digest_is_found(tmp_path: Path) -> None:
    partial = PartialUpload(tmp_path / "u", a_plan(CONTENTS, sha256="0" * 64))
    partial.open()
    send(partial, b"".join(CONTENTS), 0, 5)
    partial.close()
    with pytest.raises(CorruptDataError, match="SHA-256 must be 000"):
        partial.split(tmp_path / "staging")


def test_key_of_an_upload_is_no_path() -> None:
    assert upload_key("../../x", 1, "ab").isalnum()
    assert upload_key("a", 1, "b") != upload_key("a", 11, "b")


def test_only_stale_uploads_are_removed(tmp_path: Path) -> None:
    for name in ("old", "new", f"new{STAGING_SUFFIX}"):  # the last was left by a killed service
        (tmp_path / name).mkdir()
    past = time.time() - 1000
    os.utime(tmp_path / "old", (past, past))
    assert remove_stale(tmp_path, older_than_s=500) == 1  # the staging may be at work
    assert remove_stale(tmp_path, older_than_s=500, is_start=True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert remove_stale(tmp_path / "missing", older_than_s=1) == 0
