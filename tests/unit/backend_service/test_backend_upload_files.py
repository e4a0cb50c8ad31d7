"""The disk side of an upload."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ktrdr.models.v1.codec_pb2 import CODEC_NONE, CODEC_ZSTD

from backend_service.upload_digests import digest_of
from backend_service.upload_files import PartialUpload
from backend_service.upload_log import sound_size_bytes
from backend_service.upload_plan import UploadPlan, upload_key
from backend_service.upload_room import UploadLimits, check_room, remove_stale
from ktrdr_core.errors import CorruptDataError, IllegalStateError, InvalidUploadError, QuotaExceededError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, encode_chunk
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, ArtifactFile

CONTENTS = [b"weights", b"config", b"metrics", b"features", b"metadata"]
LARGE = [os.urandom(int(3.5 * CHUNK_SIZE_BYTES)), b"config", b"metrics", b"features", b"metadata"]


def a_plan(
    contents: list[bytes], *, write_offset: int = 0, sha256: str | None = None, reused: tuple[str, ...] = ()
) -> UploadPlan:
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
        reused=frozenset(reused),
    )


def send(partial: PartialUpload, data: bytes, offset: int, size: int = CHUNK_SIZE_BYTES) -> None:
    for start in range(offset, len(data), size):
        partial.add(encode_chunk(start, data[start : start + size], CODEC_ZSTD))


def killed(partial: PartialUpload) -> None:
    """Leave an upload as a process that is killed does: what was written is there, nothing more is."""
    partial._let_go()


def opened(directory: Path, plan: UploadPlan, **shared: Path) -> PartialUpload:
    partial = PartialUpload(directory, plan)
    partial.open({name.replace("_", "."): path for name, path in shared.items()})
    return partial


def stored_file(directory: Path, content: bytes) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return path


@settings(max_examples=8)  # each one waits for the disk
@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), min_size=5, max_size=5),
    size=st.integers(1, 50),
    cut=st.integers(0, 200),
)
def test_chunks_joined_equal_the_files_whatever_the_cut(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], size: int, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("upload") / "u"
    data = b"".join(contents)
    first = opened(directory, a_plan(contents))
    send(first, data[:cut], 0, size)
    first.close()
    stored = sound_size_bytes(directory)
    assert stored == min(cut, len(data))
    second = opened(directory, a_plan(contents, write_offset=stored))
    send(second, data, stored, size)
    files = second.verify()
    assert [(files / name).read_bytes() for name in TRAVELLING_FILES] == contents
    assert len(list(files.iterdir())) == len(contents)
    second.remove()
    assert not directory.exists()


def test_a_killed_service_keeps_every_chunk_it_has_written(tmp_path: Path) -> None:
    data = b"".join(LARGE)
    partial = opened(tmp_path / "u", a_plan(LARGE))
    send(partial, data[: 3 * CHUNK_SIZE_BYTES], 0)
    killed(partial)
    assert sound_size_bytes(tmp_path / "u") == 3 * CHUNK_SIZE_BYTES
    path = tmp_path / "u" / "files" / "model.safetensors"
    with path.open("ab") as file:
        file.write(b"half a chunk, of which the log knows nothing")
    assert sound_size_bytes(tmp_path / "u") == 3 * CHUNK_SIZE_BYTES
    again = opened(tmp_path / "u", a_plan(LARGE, write_offset=3 * CHUNK_SIZE_BYTES))
    send(again, data, 3 * CHUNK_SIZE_BYTES)
    assert (again.verify() / "model.safetensors").read_bytes() == LARGE[0]


def test_a_killed_service_keeps_tiny_chunks_by_the_quarter_megabyte(tmp_path: Path) -> None:
    partial = opened(tmp_path / "u", a_plan(LARGE))
    send(partial, LARGE[0][:700_000], 0, 10_000)
    killed(partial)
    sound = sound_size_bytes(tmp_path / "u")
    assert 700_000 - 256 * 1024 < sound <= 700_000
    assert (tmp_path / "u" / "chunks").stat().st_size < 100


def test_a_killed_service_keeps_what_came_around_a_shared_file(tmp_path: Path) -> None:
    contents = [os.urandom(700_000), b"config", os.urandom(600_000), b"features", b"metadata"]
    config = stored_file(tmp_path / "s", b"config")
    plan = a_plan(contents, reused=("config.json",))
    partial = opened(tmp_path / "u", plan, config_json=config)
    for start in range(0, 700_000, 100_000):
        partial.add(encode_chunk(start, contents[0][start : start + 100_000], CODEC_NONE))
    partial.add(encode_chunk(700_006, contents[2], CODEC_NONE))
    killed(partial)
    assert sound_size_bytes(tmp_path / "u") == 1_300_006


@pytest.mark.parametrize("damage", ["bytes", "log", "torn log"])
def test_what_a_power_cut_has_lost_is_not_counted(tmp_path: Path, damage: str) -> None:
    partial = opened(tmp_path / "u", a_plan(LARGE))
    send(partial, LARGE[0][: 3 * CHUNK_SIZE_BYTES], 0)
    killed(partial)
    log = tmp_path / "u" / "chunks"
    if damage == "bytes":
        with (tmp_path / "u" / "files" / "model.safetensors").open("r+b") as file:
            file.seek(CHUNK_SIZE_BYTES + 77)
            file.write(bytes(4096))
    elif damage == "log":
        log.write_bytes(log.read_bytes()[:16] + bytes(16) + log.read_bytes()[32:])
    else:
        log.write_bytes(log.read_bytes()[: 16 + 5])
    assert sound_size_bytes(tmp_path / "u") == CHUNK_SIZE_BYTES


def test_what_is_above_the_mark_is_made_safe_in_the_background(tmp_path: Path) -> None:
    partial = PartialUpload(tmp_path / "u", a_plan(LARGE), sync_every_bytes=CHUNK_SIZE_BYTES)
    partial.open()
    send(partial, LARGE[0][: 3 * CHUNK_SIZE_BYTES], 0)
    partial.abandon()  # waits for the thread; makes nothing safe itself
    assert int((tmp_path / "u" / "mark").read_text()) == 3 * CHUNK_SIZE_BYTES
    (tmp_path / "u" / "chunks").unlink()
    assert sound_size_bytes(tmp_path / "u") == 3 * CHUNK_SIZE_BYTES


def test_upload_goes_on_anywhere_in_what_is_safe(tmp_path: Path) -> None:
    partial = opened(tmp_path / "u", a_plan(CONTENTS))
    partial.add(encode_chunk(0, b"weightscon", CODEC_NONE))
    partial.close()
    with pytest.raises(InvalidUploadError, match="must be at most 10, was 11"):
        opened(tmp_path / "u", a_plan(CONTENTS, write_offset=11))
    for offset in (10, 8, 7, 3, 0):  # more may have been made safe since the sender asked
        again = opened(tmp_path / "u", a_plan(CONTENTS, write_offset=offset))
        again.close()
        assert sound_size_bytes(tmp_path / "u") == offset


def test_the_same_digest_announced_for_other_files_starts_from_zero(tmp_path: Path) -> None:
    partial = opened(tmp_path / "u", a_plan(CONTENTS))
    partial.add(encode_chunk(0, b"weights", CODEC_NONE))
    partial.close()
    other = a_plan([b"weightsc", b"onfig", *CONTENTS[2:]])
    assert other.sha256 == a_plan(CONTENTS).sha256
    with pytest.raises(InvalidUploadError, match="must be at most 0, was 7"):
        opened(tmp_path / "u", replace(other, write_offset=7))
    assert sound_size_bytes(tmp_path / "u") == 7
    again = opened(tmp_path / "u", other)
    send(again, b"".join(CONTENTS), 0, 5)
    assert (again.verify() / "model.safetensors").read_bytes() == b"weightsc"


def test_wrong_digests_are_found(tmp_path: Path) -> None:
    partial = opened(tmp_path / "u", a_plan(CONTENTS, sha256="0" * 64))
    send(partial, b"".join(CONTENTS), 0, 5)
    with pytest.raises(CorruptDataError, match="SHA-256 must be 000"):
        partial.verify()
    plan = a_plan(CONTENTS)
    wrong = replace(plan.files[2], sha256="0" * 64)
    partial = opened(tmp_path / "v", replace(plan, files=(*plan.files[:2], wrong, *plan.files[3:])))
    send(partial, b"".join(CONTENTS), 0, 5)
    with pytest.raises(InvalidUploadError, match=r"metrics\.json differs"):
        partial.verify()


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (3, b"ghts", "offset must be 7, was 3"),  # overlaps
        (9, b"nfig", "offset must be 7, was 9"),  # leaves a gap, or comes too early
        (-1, b"x", "offset must be 7, was -1"),
        (7, bytes(99), "declares 36 bytes and the chunk at 7 ends at 106"),
    ],
)
def test_chunks_that_do_not_follow_are_refused_and_change_nothing(
    tmp_path: Path, offset: int, data: bytes, message: str
) -> None:
    partial = opened(tmp_path / "u", a_plan(CONTENTS))
    partial.add(encode_chunk(0, b"weights", CODEC_NONE))
    with pytest.raises(InvalidUploadError, match=message):
        partial.add(encode_chunk(offset, data, CODEC_NONE))
    send(partial, b"".join(CONTENTS), 7, 50)
    assert (partial.verify() / "config.json").read_bytes() == b"config"


def test_shared_files_are_linked_and_take_their_place_in_the_run_of_bytes(tmp_path: Path) -> None:
    weights, features = stored_file(tmp_path / "s", b"weights"), stored_file(tmp_path / "s", b"features")
    plan = a_plan(CONTENTS, reused=("model.safetensors", "features.json"))
    assert plan.size_on_disk_bytes == len(b"configmetricsmetadata")
    partial = opened(tmp_path / "u", plan, model_safetensors=weights, features_json=features)
    assert partial.size_bytes == 7
    with pytest.raises(InvalidUploadError, match=r"features\.json, from 20 on, is not sent"):
        partial.add(encode_chunk(7, b"configmetricsfeat", CODEC_NONE))
    partial.add(encode_chunk(7, b"configmetrics", CODEC_NONE))
    assert partial.size_bytes == 28
    partial.add(encode_chunk(28, b"metadata", CODEC_NONE))
    files = partial.verify()
    assert [(files / name).read_bytes() for name in TRAVELLING_FILES] == CONTENTS
    assert (files / "model.safetensors").samefile(weights)


def test_an_upload_with_shared_files_goes_on_behind_them(tmp_path: Path) -> None:
    weights = stored_file(tmp_path / "s", b"weights")
    plan = a_plan(CONTENTS, reused=("model.safetensors",))
    partial = opened(tmp_path / "u", plan, model_safetensors=weights)
    partial.add(encode_chunk(7, b"conf", CODEC_NONE))
    partial.close()
    assert sound_size_bytes(tmp_path / "u") == 11
    weights.unlink()  # deleted from the store meanwhile: what was linked stays
    again = opened(tmp_path / "u", replace(plan, write_offset=11, reused=frozenset()))
    send(again, b"".join(CONTENTS), 11, 50)
    assert (again.verify() / "model.safetensors").read_bytes() == b"weights"


def test_a_shared_file_replaces_the_part_of_it_that_has_arrived(tmp_path: Path) -> None:
    partial = opened(tmp_path / "u", a_plan(CONTENTS))
    partial.add(encode_chunk(0, b"wei", CODEC_NONE))
    partial.close()
    weights = stored_file(tmp_path / "s", b"weights")
    plan = a_plan(CONTENTS, write_offset=3, reused=("model.safetensors",))
    again = opened(tmp_path / "u", plan, model_safetensors=weights)
    send(again, b"".join(CONTENTS), 7, 50)
    assert (again.verify() / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("offset", [0, 3, 7, 8])
def test_a_stored_file_is_never_written_through_a_link(tmp_path: Path, offset: int) -> None:
    weights = stored_file(tmp_path / "s", b"weights")
    first = opened(tmp_path / "u", a_plan(CONTENTS, reused=("model.safetensors",)), model_safetensors=weights)
    first.add(encode_chunk(7, b"conf", CODEC_NONE))
    first.close()
    again = opened(tmp_path / "u", a_plan(CONTENTS, write_offset=offset))
    assert weights.read_bytes() == b"weights"
    send(again, b"".join(CONTENTS), offset, 2)
    assert (again.verify() / "model.safetensors").read_bytes() == b"weights"
    assert weights.read_bytes() == b"weights"


def test_a_damaged_file_of_the_store_is_found_and_named(tmp_path: Path) -> None:
    weights = stored_file(tmp_path / "s", b"weightX")
    partial = opened(tmp_path / "u", a_plan(CONTENTS, reused=("model.safetensors",)), model_safetensors=weights)
    send(partial, b"".join(CONTENTS), 7, 50)
    with pytest.raises(IllegalStateError, match=r"model\.safetensors in the store differ"):
        partial.verify()


def test_a_file_that_leaves_the_store_before_it_is_linked_is_said_to_be_gone(tmp_path: Path) -> None:
    with pytest.raises(IllegalStateError, match=r"no such model\.safetensors any more; ask QueryUpload again"):
        opened(
            tmp_path / "u",
            a_plan(CONTENTS, reused=("model.safetensors",)),
            model_safetensors=tmp_path / "was deleted",
        )


def test_what_a_publication_that_failed_has_left_is_not_published(tmp_path: Path) -> None:
    partial = opened(tmp_path / "u", a_plan(CONTENTS))
    send(partial, b"".join(CONTENTS), 0, 50)
    files = partial.verify()
    (files / "model.pt").write_bytes(b"half derived")
    partial.abandon()
    again = opened(tmp_path / "u", a_plan(CONTENTS, write_offset=len(b"".join(CONTENTS))))
    assert sorted(path.name for path in again.verify().iterdir()) == sorted(TRAVELLING_FILES)


def test_digest_of_files_is_that_of_their_upload(tmp_path: Path) -> None:
    for name, content in zip(TRAVELLING_FILES, CONTENTS, strict=True):
        (tmp_path / name).write_bytes(content)
    plan = a_plan(CONTENTS)
    assert digest_of(tmp_path, plan.files) == plan.sha256


def test_key_of_an_upload_is_no_path() -> None:
    assert upload_key("../../x", 1, "ab").isalnum()
    assert upload_key("a", 1, "b") != upload_key("a", 11, "b")


def test_uploads_that_are_not_whole_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    plan = a_plan(CONTENTS)
    opened(tmp_path / plan.key, plan).close()
    other = replace(plan, training_id="other")
    enough = UploadLimits(max_size_bytes=100, max_num=2, max_total_bytes=72)
    check_room(tmp_path, other, enough)
    check_room(tmp_path, plan, replace(enough, max_num=1))  # it is there already
    check_room(tmp_path, replace(plan, training_id="", attempt=0), replace(enough, max_num=1))  # imports count apart
    with pytest.raises(QuotaExceededError, match="1 uploads of trainings are not whole yet and the limit is 1"):
        check_room(tmp_path, other, replace(enough, max_num=1))
    with pytest.raises(QuotaExceededError, match="need 72 bytes and the limit is 71"):
        check_room(tmp_path, other, replace(enough, max_total_bytes=71))
    check_room(tmp_path, replace(other, reused=frozenset(["model.safetensors"])), replace(enough, max_total_bytes=71))


def test_only_stale_uploads_are_removed(tmp_path: Path) -> None:
    for name in ("old", "new", "at-work"):
        (tmp_path / name / "files").mkdir(parents=True)
    (tmp_path / "published").mkdir()  # killed before it was removed
    past = time.time() - 1000
    for name in ("old", "at-work"):
        os.utime(tmp_path / name, (past, past))
    assert remove_stale(tmp_path, older_than_s=500, keep=["at-work"]) == 1  # one that has no files may be beginning
    assert remove_stale(tmp_path, older_than_s=500, keep=["at-work"], is_start=True) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-work", "new"]
    assert remove_stale(tmp_path / "missing", older_than_s=1) == 0
