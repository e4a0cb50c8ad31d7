"""Pulling models: whatever the network does, the directory ends complete and verified, or has parts to go on from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from ktrdr.models.v1.codec_pb2 import CODEC_UNSPECIFIED, CODEC_ZSTD
from ktrdr_client import AsyncClient, Client
from ktrdr_client.model_pull import PullPolicy
from ktrdr_client.model_types import ModelFile
from ktrdr_client.part_file import PartFile

from ktrdr_core.errors import (
    CorruptDataError,
    InvalidInputError,
    KtrdrError,
    ModelNotFoundError,
    StorageError,
    UnavailableError,
    WriteConflictError,
)
from ktrdr_core.rpc.codec_choice import Compression
from tests.kit.eventually import eventually
from tests.kit.fake_models import (
    Break,
    FakeModels,
    another_header,
    cut_after,
    damage,
    end_after,
    hang_after,
    headers_only,
    no_header,
    swap,
)
from tests.kit.grpc_server import serving

MIB = 1 << 20
WEIGHTS = bytes(range(256)) * 4 * 2_500  # two chunks and a half
QUICK = PullPolicy(idle_timeout_s=5.0, delays_s=(0.01,), give_up_after_s=60.0)


def some_models() -> FakeModels:
    return FakeModels(
        {"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}', "metadata.json": b'{"id": "x"}', "empty.json": b""}
    )


@asynccontextmanager
async def client_of(models: FakeModels) -> AsyncIterator[AsyncClient]:
    async with serving(models.add_to) as address, AsyncClient(address) as client:
        yield client


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_pulled_directory_has_the_files_and_nothing_else(tmp_path: Path) -> None:
    models, told = some_models(), list[tuple[int, int]]()
    async with client_of(models) as client:
        directory = await client.pull_model(
            "fake", tmp_path / "a" / "b", progress=lambda here, total: told.append((here, total))
        )
    assert directory == tmp_path / "a" / "b"
    assert contents(directory) == models.files
    total = sum(map(len, models.files.values()))
    assert (told[0], told[-1]) == ((0, total), (total, total))
    assert told == sorted(told)
    assert len(told) >= 5
    assert models.codecs == {CODEC_UNSPECIFIED}


@pytest.mark.parametrize(
    "broken",
    [cut_after(2), end_after(2), hang_after(2), damage(2), cut_after(0), headers_only],
    ids=["cut", "ends early", "hangs", "damaged", "before its header", "header again and again"],
)
async def test_broken_stream_is_gone_on_with_at_the_bytes_that_are_here(tmp_path: Path, broken: Break) -> None:
    models, told = some_models(), list[KtrdrError]()
    models.breaks = [broken]
    async with client_of(models) as client:
        await client.pull_model("fake", tmp_path / "m", policy=replace(QUICK, idle_timeout_s=0.5), on_retry=told.append)
    assert contents(tmp_path / "m") == models.files
    offsets = [offset for file, offset in models.calls if file == "model.safetensors"]
    assert offsets in ([0, MIB], [0, 0])
    assert len(told) == 1


async def test_pull_that_was_cancelled_leaves_parts_only_and_the_next_one_goes_on_from_them(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [hang_after(3)]
    part = tmp_path / "m" / ".model.safetensors.part"
    async with client_of(models) as client:
        pulling = asyncio.create_task(client.pull_model("fake", tmp_path / "m", policy=QUICK))
        await eventually(lambda: part.exists() and part.stat().st_size == 2 * MIB)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        left = contents(tmp_path / "m")
        assert {name for name, content in left.items() if content} == {part.name}
        assert all(name.startswith(".") and name.endswith(".part") for name in left)
        await client.pull_model("fake", tmp_path / "m", policy=QUICK)
    assert models.calls[:2] == [("model.safetensors", 0), ("model.safetensors", 2 * MIB)]
    assert contents(tmp_path / "m") == models.files


async def test_file_of_another_digest_is_fetched_once_more(tmp_path: Path) -> None:
    models, told = some_models(), list[tuple[int, int]]()
    models.breaks = [swap(b"x" * len(WEIGHTS))]
    async with client_of(models) as client:
        await client.pull_model(
            "fake", tmp_path / "m", policy=QUICK, progress=lambda here, total: told.append((here, total))
        )
    assert models.calls[:2] == [("model.safetensors", 0)] * 2
    assert contents(tmp_path / "m") == models.files
    assert max(told) == told[-1] == (told[-1][1], told[-1][1]), "bytes that are fetched again do not count twice"


async def test_file_of_another_digest_twice_is_an_error_and_not_there(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [swap(b"x" * len(WEIGHTS))] * 2
    async with client_of(models) as client:
        with pytest.raises(CorruptDataError, match=r"model\.safetensors arrived twice"):
            await client.pull_model("fake", tmp_path / "m", policy=QUICK)
    assert len(models.calls) == 2
    assert set(map(len, contents(tmp_path / "m").values())) == {0}, "nothing that is wrong is gone on from"
    assert all(name.endswith(".part") for name in contents(tmp_path / "m"))


@pytest.mark.parametrize("left", [b"z" * 300, b"z" * len(WEIGHTS), b"z" * (len(WEIGHTS) + 1)], ids=len)
async def test_part_of_something_else_costs_a_second_try_and_no_more(tmp_path: Path, left: bytes) -> None:
    models = some_models()
    (tmp_path / ".model.safetensors.part").write_bytes(left)
    async with client_of(models) as client:
        await client.pull_model("fake", tmp_path, policy=QUICK)
    assert contents(tmp_path) == models.files


async def test_files_that_are_there_are_not_fetched_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    models, told = some_models(), list[tuple[int, int]]()
    async with client_of(models) as client:
        await client.pull_model("fake", tmp_path, policy=QUICK)
        (tmp_path / "config.json").write_bytes(b'{"a": 2}')
        models.calls.clear()
        await client.pull_model("fake", tmp_path, progress=lambda here, total: told.append((here, total)))
        assert models.calls == [("config.json", 0)]
        assert told[0][0] == told[0][1] - len(b'{"a": 1}')
        models.calls.clear()
        await client.pull_model("fake", tmp_path, policy=QUICK)
    assert models.calls == []
    assert contents(tmp_path) == models.files


async def test_directory_of_another_model_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    before = {"metadata.json": b'{"id": "y"}', "notes.txt": b"mine"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    models = some_models()
    async with client_of(models) as client:
        with pytest.raises(InvalidInputError, match=r"has another metadata\.json than fake/EURUSD_1h_v1"):
            await client.pull_model("fake", tmp_path)
        with pytest.raises(InvalidInputError, match="is no directory"):
            await client.pull_model("fake", tmp_path / "notes.txt")
    assert contents(tmp_path) == before
    assert models.calls == []


@pytest.mark.parametrize("name", ["../evil", "/var/evil", "a/b", ".hidden", "", "..", "a\\..\\b"])
async def test_file_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    models = FakeModels({"model.safetensors": b"w", name: b"evil"})
    async with client_of(models) as client:
        with pytest.raises(CorruptDataError, match="no file name"):
            await client.pull_model("fake", tmp_path / "inner" / "m")
    assert contents(tmp_path) == {}
    assert models.calls == []


async def test_backend_that_stays_away_is_given_up_and_what_arrived_is_kept(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [cut_after(2), *[cut_after(0)] * 1000]
    policy = PullPolicy(delays_s=(0.01,), give_up_after_s=0.2)
    async with client_of(models) as client:
        with pytest.raises(UnavailableError, match=f"{MIB} of {len(WEIGHTS)} bytes are kept in .*part, pull again"):
            await client.pull_model("fake", tmp_path, policy=policy)
    assert (tmp_path / ".model.safetensors.part").read_bytes() == WEIGHTS[:MIB]


async def test_pauses_grow_and_begin_anew_once_bytes_have_come(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [cut_after(0), cut_after(0), cut_after(2), cut_after(0)]
    begun = asyncio.get_running_loop().time
    moments: list[float] = []
    async with client_of(models) as client:
        await client.pull_model(
            "fake",
            tmp_path,
            policy=PullPolicy(delays_s=(0.0, 0.2, 0.4)),
            on_retry=lambda problem: moments.append(begun()),
        )
        moments.append(begun())
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert pauses[1] >= 0.2
    assert pauses[2] < 0.2 <= pauses[3]


@pytest.mark.parametrize("error", [CorruptDataError("the file has another size"), ModelNotFoundError("deleted")])
async def test_what_a_retry_cannot_help_is_raised_at_once(tmp_path: Path, error: KtrdrError) -> None:
    models = some_models()
    models.breaks = [cut_after(2, error)]
    async with client_of(models) as client:
        with pytest.raises(type(error), match=error.message):
            await client.pull_model("fake", tmp_path, policy=QUICK)
    assert len(models.calls) == 1
    assert (tmp_path / ".model.safetensors.part").stat().st_size == MIB


@pytest.mark.parametrize("broken", [another_header, no_header])
async def test_backend_that_has_another_file_than_it_said_is_not_read(tmp_path: Path, broken: Break) -> None:
    models = some_models()
    models.breaks = [broken]
    async with client_of(models) as client:
        with pytest.raises(CorruptDataError, match="has another model"):
            await client.pull_model("fake", tmp_path, policy=QUICK)


async def test_more_bytes_than_said_never_reach_the_file(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [swap(WEIGHTS + b"more" * MIB)] * 1000
    async with client_of(models) as client:
        with pytest.raises(UnavailableError, match="more than the"):
            await client.pull_model("fake", tmp_path, policy=PullPolicy(delays_s=(0.01,), give_up_after_s=0.2))
    assert (tmp_path / ".model.safetensors.part").stat().st_size <= len(WEIGHTS)


async def test_two_pulls_into_one_directory_never_mix(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [hang_after(2)]
    part = tmp_path / ".model.safetensors.part"
    async with client_of(models) as client:
        first = asyncio.create_task(client.pull_model("fake", tmp_path, policy=replace(QUICK, idle_timeout_s=2.0)))
        await eventually(lambda: part.exists() and part.stat().st_size == MIB)
        with pytest.raises(WriteConflictError, match="another process"):
            await client.pull_model("fake", tmp_path)
        await first
    assert contents(tmp_path) == models.files


async def test_only_the_files_that_are_named_are_pulled(tmp_path: Path) -> None:
    models = some_models()
    async with client_of(models) as client:
        await client.pull_model("fake", tmp_path, files=["config.json"])
        assert contents(tmp_path) == {"config.json": models.files["config.json"]}
        with pytest.raises(InvalidInputError, match=r"has no file nope\.pt; it has model\.safetensors, config\.json"):
            await client.pull_model("fake", tmp_path, files=["nope.pt"])


async def test_one_file_is_brought_to_a_path_of_its_own(tmp_path: Path) -> None:
    models = some_models()
    models.breaks = [cut_after(2)]
    target = tmp_path / "weights"
    target.write_bytes(b"older")
    async with client_of(models) as client:
        found = await client.download_model_file(
            "fake", "model.safetensors", target, policy=QUICK, compression=Compression.ZSTD
        )
        assert found == target
        assert contents(tmp_path) == {"weights": WEIGHTS}
        await client.download_model_file("fake", "model.safetensors", target)
    assert models.calls == [("model.safetensors", 0), ("model.safetensors", MIB)]
    assert models.codecs == {CODEC_ZSTD}


async def test_directory_that_takes_no_files_is_told(tmp_path: Path) -> None:
    (tmp_path / ".config.json.part").mkdir()
    async with client_of(some_models()) as client:
        with pytest.raises(StorageError, match="takes no files"):
            await client.pull_model("fake", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


async def test_weights_come_into_their_place_last(tmp_path: Path) -> None:
    """So that a crash in between leaves no directory that passes for a model."""
    models = some_models()

    def disturb(here: int, total: int) -> None:
        if here == total:
            (tmp_path / "metadata.json").mkdir(exist_ok=True)  # a rename over it fails

    async with client_of(models) as client:
        with pytest.raises(StorageError):
            await client.pull_model("fake", tmp_path, progress=disturb)
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "config.json").exists()


async def test_bytes_of_a_file_are_yielded_from_an_offset() -> None:
    models = some_models()
    async with client_of(models) as client:
        assert b"".join([raw async for raw in client.download_model(models.name, "model.safetensors")]) == WEIGHTS
        rest = [raw async for raw in client.download_model(models.name, "model.safetensors", read_offset=MIB + 7)]
        assert b"".join(rest) == WEIGHTS[MIB + 7 :]
        models.breaks = [damage(1)]
        with pytest.raises(CorruptDataError, match="CRC32C"):
            await anext(client.download_model(models.name, "model.safetensors"))
        models.breaks = [cut_after(2)]
        with pytest.raises(UnavailableError):
            [raw async for raw in client.download_model(models.name, "model.safetensors")]


async def test_sync_client_pulls_as_the_async_one(tmp_path: Path) -> None:
    models = some_models()

    def use(address: str) -> bytes:
        with Client(address) as client:
            client.pull_model("fake", tmp_path / "m", policy=QUICK)
            client.download_model_file("fake", "config.json", tmp_path / "c")
            return b"".join(client.download_model(models.name, "config.json"))

    async with serving(models.add_to) as address:
        assert await asyncio.to_thread(use, address) == models.files["config.json"]
    assert contents(tmp_path / "m") == models.files
    assert (tmp_path / "c").read_bytes() == models.files["config.json"]


def test_part_is_durable_only_once_it_is_sound(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "f", ModelFile(name="f", size_bytes=4, sha256="0" * 64))
    part.open()
    try:
        assert not part.is_whole
        assert not part.is_sound()
    finally:
        part.close()
