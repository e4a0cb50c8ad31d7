"""What the receiver of uploads does with senders that are silent, slow, wrong or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1.codec_pb2 import CODEC_NONE

from backend_service.operations.trainings import Trainings
from backend_service.publisher import Publisher
from backend_service.upload_log import sound_size_bytes
from backend_service.upload_room import UploadLimits
from backend_service.uploads import UploadReceiver
from ktrdr_core.errors import InvalidUploadError, StorageError, UnavailableError, UploadNotFoundError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, encode_chunk
from ktrdr_core.rpc.upload import UploadPlan, upload_messages
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.model_storage import ModelStorage
from tests.kit.artifacts import make_artifact
from tests.kit.eventually import PATIENCE_S, eventually

LIMITS = UploadLimits(max_size_bytes=1 << 30, max_num=64, max_total_bytes=1 << 30)
Requests = AsyncIterator[pb.UploadModelRequest]


class NoTrainings:
    """There are none: what comes is imported."""

    def find_active(self, training_id: str) -> None:
        return None


def a_receiver(directory: Path, *, idle_timeout_s: float = PATIENCE_S) -> UploadReceiver:
    return UploadReceiver(
        directory / "uploads",
        trainings=cast(Trainings, NoTrainings()),
        publisher=Publisher(ModelStorage(directory / "models"), has_torch=False),
        limits=LIMITS,
        idle_timeout_s=idle_timeout_s,
    )


@pytest.fixture
def plan(tmp_path: Path) -> UploadPlan:
    write_artifact(tmp_path / "artifact", make_artifact())
    return UploadPlan.of(tmp_path / "artifact")


def in_pieces(plan: UploadPlan, size_bytes: int) -> list[pb.UploadModelRequest]:
    """Return the messages of an upload in chunks of this size."""
    header, *_ = upload_messages(plan)
    whole = b"".join((plan.directory / file.name).read_bytes() for file in plan.files)
    chunks = [
        pb.UploadModelRequest(chunk=encode_chunk(start, whole[start : start + size_bytes], CODEC_NONE))
        for start in range(0, len(whole), size_bytes)
    ]
    return [header, *chunks]


async def sent(messages: Sequence[pb.UploadModelRequest], *, then: asyncio.Event | None = None) -> Requests:
    """Give the messages; then end, or wait."""
    for message in messages:
        yield message
    if then is not None:
        await then.wait()


def stored(directory: Path) -> int:
    return max((sound_size_bytes(path) for path in (directory / "uploads").glob("*")), default=0)


async def test_a_sender_that_falls_silent_is_let_go_and_its_bytes_are_kept(tmp_path: Path, plan: UploadPlan) -> None:
    receiver = a_receiver(tmp_path, idle_timeout_s=0.2)
    messages = in_pieces(plan, 500)
    with pytest.raises(UnavailableError, match=r"nothing of the upload came for 0\.2 s"):
        await receiver.receive(sent(messages[:3], then=asyncio.Event()))
    assert (await receiver.query(plan.query())).committed_size_bytes == 1_000
    rest = list(upload_messages(plan, write_offset=1_000))
    assert (await receiver.receive(sent(rest))).model.version == 1


async def test_silence_before_the_header_ends_the_call(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await a_receiver(tmp_path, idle_timeout_s=0.05).receive(sent([], then=asyncio.Event()))


async def test_a_slow_sender_has_all_the_time_it_wants(tmp_path: Path, plan: UploadPlan) -> None:
    messages = in_pieces(plan, 200)

    async def slowly() -> Requests:
        for message in messages:
            yield message
            await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0.02)

    begun = asyncio.get_running_loop().time()
    receipt = await a_receiver(tmp_path, idle_timeout_s=0.5).receive(slowly())
    assert receipt.model.version == 1
    assert asyncio.get_running_loop().time() - begun > 0.5


async def test_a_wrong_chunk_is_refused_before_the_next_one_has_come(tmp_path: Path, plan: UploadPlan) -> None:
    header, *_ = upload_messages(plan)
    wrong = pb.UploadModelRequest(chunk=encode_chunk(5, b"a gap before it", CODEC_NONE))
    with pytest.raises(InvalidUploadError, match="offset must be 0, was 5"):
        async with asyncio.timeout(PATIENCE_S / 2):
            await a_receiver(tmp_path).receive(sent([header, wrong], then=asyncio.Event()))


async def test_a_sender_that_goes_away_leaves_what_it_sent_for_the_next(tmp_path: Path, plan: UploadPlan) -> None:
    receiver = a_receiver(tmp_path)
    receiving = asyncio.create_task(receiver.receive(sent(in_pieces(plan, 500)[:4], then=asyncio.Event())))
    await eventually(lambda: any((tmp_path / "uploads").glob("*/files/model.safetensors")))

    def has_all() -> bool:
        return sum(path.stat().st_size for path in (tmp_path / "uploads").glob("*/files/*")) == 1_500

    await eventually(has_all)
    receiving.cancel()
    await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert stored(tmp_path) == 1_500
    rest = list(upload_messages(plan, write_offset=1_500))
    assert (await receiver.receive(sent(rest))).model.version == 1


async def test_a_sender_that_goes_away_after_the_last_byte_has_its_model_stored(
    tmp_path: Path, plan: UploadPlan
) -> None:
    receiver = a_receiver(tmp_path)
    is_at_the_end = asyncio.Event()

    async def all_of_it() -> Requests:
        for message in upload_messages(plan):
            yield message
        is_at_the_end.set()

    receiving = asyncio.create_task(receiver.receive(all_of_it()))
    await is_at_the_end.wait()
    await eventually(lambda: receiver._endings)
    receiving.cancel()
    await receiver.close()
    assert (await receiver.query(plan.query())).is_complete
    await asyncio.wait([receiving])
    assert not list((tmp_path / "uploads").iterdir())


def endless(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    header, *chunks = in_pieces(plan, 400)
    return [header, *chunks, *(pb.UploadModelRequest(chunk=encode_chunk(0, b"x", CODEC_NONE)) for _ in range(99))]


def oversized(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    header, *_ = in_pieces(plan, 400)
    chunk = encode_chunk(0, bytes(CHUNK_SIZE_BYTES), CODEC_NONE)
    chunk.data += b"one more"
    return [header, pb.UploadModelRequest(chunk=chunk)]


def reordered(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    header, first, second, *rest = in_pieces(plan, 400)
    return [header, second, first, *rest]


def overlapping(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    header, first, *rest = in_pieces(plan, 400)
    return [header, first, first, *rest]


def empty(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    header, *_ = in_pieces(plan, 400)
    return [header, pb.UploadModelRequest(chunk=pb.UploadChunk(codec=CODEC_NONE))]


def second_header(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    header, first, *_ = in_pieces(plan, 400)
    return [header, first, header]


def truncated(plan: UploadPlan) -> list[pb.UploadModelRequest]:
    return in_pieces(plan, 400)[:-1]


@pytest.mark.parametrize(
    "build",
    [endless, oversized, reordered, overlapping, empty, second_header, truncated],
    ids=lambda each: each.__name__,
)
async def test_what_breaks_the_order_is_refused_and_the_right_bytes_still_arrive(
    tmp_path: Path, plan: UploadPlan, build: Callable[[UploadPlan], list[pb.UploadModelRequest]]
) -> None:
    receiver = a_receiver(tmp_path)
    with pytest.raises(InvalidUploadError):
        await receiver.receive(sent(build(plan)))
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").glob("*/*_v1"))
    try:
        offset = (await receiver.query(plan.query())).committed_size_bytes
    except UploadNotFoundError:
        offset = 0
    receipt = await receiver.receive(sent(list(upload_messages(plan, write_offset=offset))))
    assert (receipt.model.version, receipt.is_duplicate) == (1, False)
    assert not list((tmp_path / "uploads").iterdir())


async def test_a_disk_that_takes_no_writes_is_to_be_tried_again(tmp_path: Path, plan: UploadPlan) -> None:
    receiver = a_receiver(tmp_path)
    in_the_way = tmp_path / "uploads"
    in_the_way.write_bytes(b"")
    with pytest.raises(StorageError, match="takes no writes"):
        await receiver.receive(sent(list(upload_messages(plan))))
    in_the_way.unlink()
    assert (await receiver.receive(sent(list(upload_messages(plan))))).model.version == 1
