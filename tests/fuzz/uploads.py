"""Target: whole uploads, stream after stream, into the backend's real receiver and a real store.

An input is a script of what senders do: cut files into chunks of any size, change, drop, repeat and swap messages,
vanish, come back, take files from the store. After each script an honest sender brings its artifact: nothing that
others did may be in its way.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from ktrdr.models.v1 import codec_pb2, model_pb2
from ktrdr.models.v1 import model_service_pb2 as pb

from backend_service.operations.trainings import Trainings
from backend_service.publisher import Publisher
from backend_service.upload_plan import upload_key
from backend_service.upload_room import UploadLimits
from backend_service.uploads import UploadReceiver
from ktrdr_core.errors import InvalidInputError, KtrdrError, TrainingNotFoundError, UploadNotFoundError
from ktrdr_core.rpc.chunks import encode_chunk
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES
from ktrdr_core.storage.model_storage import ModelStorage
from tests.fuzz.target import Decisions, Probe, Target
from tests.kit.artifacts import make_artifact

TRAINING_ID = "t1"
GIVEN_UP, LIVE = 1, 2
"""Attempts of the one training there is."""

_LIMITS = UploadLimits(max_size_bytes=1 << 20, max_num=8, max_total_bytes=1 << 21)
_MAX_STREAMS, _MAX_CHANGES = 4, 5
_MAX_HONEST_TRIES = 4


class _Trainings:
    """One training, whose first attempt was given up and whose second one runs."""

    def __init__(self) -> None:
        sessions = [SimpleNamespace(attempt=attempt, is_on_trainer=True) for attempt in (GIVEN_UP, LIVE)]
        self._record = SimpleNamespace(
            sessions=sessions, live_session=sessions[-1], is_ended=False, publication=asyncio.Lock()
        )

    def find_active(self, training_id: str) -> Any:
        return self._record if training_id == TRAINING_ID else None

    async def snapshot(self, training_id: str) -> Any:
        raise TrainingNotFoundError(f"there is no training {training_id!r}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """The bytes of an artifact's files, and who sends it."""

    contents: dict[str, bytes]
    training_id: str
    attempt: int

    @property
    def whole(self) -> bytes:
        return b"".join(self.contents.values())

    def files(self) -> list[model_pb2.ModelFile]:
        return [
            model_pb2.ModelFile(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).digest())
            for name, data in self.contents.items()
        ]

    def header(self, write_offset: int = 0, reused: Sequence[str] = ()) -> pb.UploadHeader:
        return pb.UploadHeader(
            training_id=self.training_id,
            attempt=self.attempt,
            total_size_bytes=len(self.whole),
            sha256=hashlib.sha256(self.whole).digest(),
            files=self.files(),
            write_offset=write_offset,
            reused_files=reused,
        )

    def chunks(self, write_offset: int, reused: Sequence[str], sizes: Decisions) -> list[pb.UploadChunk]:
        """Cut what is to be sent from `write_offset` on into chunks, which never reach into a reused file."""
        chunks = []
        start = 0
        for name, data in self.contents.items():
            end = start + len(data)
            at = max(start, write_offset)
            while at < end and name not in reused:
                size = sizes.choice((4096, 700, 100, 1)) + sizes.number(64)
                raw = data[at - start : at - start + size]
                chunks.append(encode_chunk(at, raw, sizes.choice(_CODECS)))
                at += len(raw)
            start = end
        return chunks


_CODECS = (codec_pb2.CODEC_NONE, codec_pb2.CODEC_ZSTD, codec_pb2.CODEC_GZIP)
_SOUND_OWNERS = (("", 0), (TRAINING_ID, LIVE), (TRAINING_ID, GIVEN_UP))
_OWNERS = (*_SOUND_OWNERS * 3, (TRAINING_ID, 3), ("t2", 1), ("../t1", 1))


@cache
def _contents(seed: int) -> tuple[tuple[str, bytes], ...]:
    rendered = make_artifact(seed=seed, name="fuzzed").render()
    return tuple((name, rendered[name]) for name in TRAVELLING_FILES)


class Scene:
    """A receiver over an empty store."""

    def __init__(self, directory: Path) -> None:
        self.uploads_dir = directory / "uploads"
        self.storage = ModelStorage(directory / "models")
        self.receiver = UploadReceiver(
            self.uploads_dir,
            trainings=cast(Trainings, _Trainings()),
            publisher=Publisher(self.storage, has_torch=False),
            limits=_LIMITS,
            idle_timeout_s=5.0,
        )

    async def send(self, messages: Sequence[pb.UploadModelRequest], *, vanishes: bool = False) -> bool:
        """Return whether an upload was confirmed; if so, it is stored byte for byte as its header says."""

        async def stream() -> AsyncIterator[pb.UploadModelRequest]:
            for message in messages:
                yield message
            if vanishes:
                receiving.cancel()
                await asyncio.Event().wait()

        receiving = asyncio.create_task(self.receiver.receive(stream()))
        try:
            receipt = await receiving
        except (KtrdrError, asyncio.CancelledError):
            return False
        header = messages[0].header
        whole = hashlib.sha256()
        for file in header.files:
            data = (receipt.model.path / file.name).read_bytes()
            assert hashlib.sha256(data).digest() == file.sha256
            whole.update(data)
        assert receipt.is_duplicate or whole.digest() == header.sha256
        assert receipt.model.training_id == header.training_id
        if not receipt.is_duplicate:
            key = upload_key(header.training_id, header.attempt, header.sha256.hex())
            assert not (self.uploads_dir / key).exists()
        assert receipt.model.is_kept_aside == (header.attempt == GIVEN_UP)
        return True

    async def query(self, artifact: Artifact) -> tuple[int, tuple[str, ...]]:
        request = pb.QueryUploadRequest(
            training_id=artifact.training_id,
            attempt=artifact.attempt,
            sha256=hashlib.sha256(artifact.whole).digest(),
            files=artifact.files(),
        )
        try:
            status = await self.receiver.query(request)
        except UploadNotFoundError:
            return 0, ()
        assert 0 <= status.committed_size_bytes <= len(artifact.whole)
        return status.committed_size_bytes, status.reusable_files

    async def run(self, decisions: Decisions) -> None:
        for _ in range(_MAX_STREAMS):
            if decisions.is_over:
                break
            await self._one_stream(decisions)
        await self._send_honestly(Artifact(dict(_contents(1)), TRAINING_ID, LIVE))
        await self._send_honestly(Artifact(dict(_contents(2)), "", 0))
        await self.receiver.close()
        for model in self.storage.list():
            assert not [check for check in self.storage.verify(model.name)[1] if check.problem]
            assert model.attempt != GIVEN_UP

    async def _one_stream(self, decisions: Decisions) -> None:
        artifact = _artifact(decisions)
        offset = 0
        reusable: tuple[str, ...] = ()
        if decisions.number(2):
            with suppress(InvalidInputError):  # the id of a training that is no name
                offset, reusable = await self.query(artifact)
        reused = [name for name in reusable if decisions.number(2)]
        if decisions.number(8) == 7:
            offset = decisions.number(len(artifact.whole) + 9)
            reused = decisions.choice([[], ["model.safetensors"], ["metadata.json"], ["../x"], [*TRAVELLING_FILES]])
        messages = [pb.UploadModelRequest(header=artifact.header(offset, reused))]
        sizes = Decisions(decisions.take(9))  # of the first chunks; the others are large
        messages += [pb.UploadModelRequest(chunk=chunk) for chunk in artifact.chunks(offset, reused, sizes)]
        for _ in range(decisions.number(_MAX_CHANGES)):
            _change(messages, decisions)
        await self.send(messages, vanishes=decisions.number(4) == 3)

    async def _send_honestly(self, artifact: Artifact) -> None:
        for _ in range(_MAX_HONEST_TRIES):
            offset, reused = await self.query(artifact)
            messages = [pb.UploadModelRequest(header=artifact.header(offset, reused))]
            chunks = artifact.chunks(offset, reused, Decisions(b""))
            messages += [pb.UploadModelRequest(chunk=chunk) for chunk in chunks]
            if await self.send(messages):
                return
        raise AssertionError(f"an honest upload was refused {_MAX_HONEST_TRIES} times")


def _artifact(decisions: Decisions) -> Artifact:
    """Return a sound artifact, or one that is wrong in itself although its digests are right."""
    contents = dict(_contents(1 + decisions.number(2)))
    training_id, attempt = decisions.choice(_OWNERS)
    if decisions.number(4) == 3:
        name = decisions.choice(TRAVELLING_FILES)
        data = bytearray(contents[name])
        at = decisions.number(len(data))
        data[at : at + decisions.number(4)] = decisions.take(decisions.number(8))
        contents[name] = bytes(data) or b"\0"
    return Artifact(contents, training_id, attempt)


def _change(messages: list[pb.UploadModelRequest], decisions: Decisions) -> None:
    at = decisions.number(len(messages))
    other = decisions.number(len(messages))
    message = pb.UploadModelRequest()
    message.CopyFrom(messages[at])
    match decisions.number(12):
        case 0:
            del messages[at:]
        case 1:
            del messages[at]
        case 2:
            messages.insert(other, message)
        case 3:
            messages[at], messages[other] = messages[other], messages[at]
        case 4:
            message.chunk.offset += decisions.choice((-1, 1, 2**62, -(2**62)))
            messages[at] = message
        case 5:
            message.chunk.raw_size_bytes = decisions.choice((0, 1, -1, 2**31 - 1, 1 << 20))
            messages[at] = message
        case 6:
            message.chunk.data += decisions.take(4)
            messages[at] = message
        case 7:
            raw = message.SerializeToString()
            place = decisions.number(len(raw) or 1)
            _try_parse(message, raw[:place] + decisions.take(2) + raw[place + decisions.number(3) :])
            messages[at] = message
        case _:
            _change_header(messages[0].header, decisions)
    if not messages:
        messages.append(pb.UploadModelRequest())


def _change_header(header: pb.UploadHeader, decisions: Decisions) -> None:
    """Make one statement of a header wrong, or two that agree."""
    file = decisions.choice(header.files) if header.files else model_pb2.ModelFile()
    match decisions.number(6):
        case 0:
            header.sha256 = decisions.choice((bytes(32), b"", file.sha256))
        case 1:
            file.sha256 = decisions.choice((bytes(32), b"", header.sha256))
        case 2:
            file.size_bytes += decisions.choice((1, -1, 2**40, -(2**40)))
        case 3:
            header.total_size_bytes += decisions.choice((1, -1, 2**40))
        case 4:
            difference = decisions.choice((1, -1, 400))
            file.size_bytes += difference
            header.total_size_bytes += difference
        case 5:
            file.name = decisions.choice(("../x", "", "model.pt", *TRAVELLING_FILES))


def _try_parse(message: pb.UploadModelRequest, data: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(data)
    except DecodeError:
        message.Clear()


def _build(directory: Path) -> Probe:
    def probe(data: bytes) -> None:
        home = directory / uuid4().hex
        try:
            scene = Scene(home)
            asyncio.run(scene.run(Decisions(data)))
            left = [path for path in scene.uploads_dir.rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in left) <= _LIMITS.max_total_bytes
        finally:
            shutil.rmtree(home, ignore_errors=True)

    return probe


def _script(owner: int, kind: int, *more: int, vanishes: bool = False) -> bytes:
    """Return the decisions of one stream with one change of its second message, or of its header."""
    return bytes([0, owner, 0, 0, 0, *[0] * 9, 1, 1, 2, kind, *more, 3 * vanishes])


def _seeds() -> list[bytes]:
    rng = random.Random(5)
    kinds = [_script(number % 3, number, 1, 1, vanishes=number > 4) for number in range(8)]
    headers = [_script(0, 8, file, kind, value) for kind in range(6) for value in range(3) for file in (0, 3)]
    return [b"", *kinds, *headers, *(rng.randbytes(rng.randrange(20, 120)) for _ in range(12))]


UPLOAD = Target(name="upload", build=_build, seeds=_seeds)
