"""`ktrdr models` list, show, pull, import, delete, alias and gc against a real backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ktrdr_client.cli.models_app import CompressionWord

from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import StoredModel
from tests.kit.artifacts import make_artifact
from tests.kit.backend import running_backend
from tests.kit.cli import ROOT, Cli, Ran, Run
from tests.kit.fake_models import FakeModels, cut_after, swap, whole
from tests.kit.grpc_server import serving
from tests.kit.terminal import Terminal

SET = "small/EURUSD_1h"


@dataclass
class Shop:
    """A backend with models, and the command that talks to it."""

    address: str
    storage: ModelStorage
    ktrdr: Run
    tmp_path: Path

    async def __call__(self, *arguments: str) -> Ran:
        return await self.ktrdr(self.address, "models", *arguments)

    def publish(self, *, seed: int = 1, training_id: str = "", aside: bool = False) -> StoredModel:
        directory = self.tmp_path / f"artifact-{training_id}-{seed}"
        write_artifact(directory, make_artifact(seed=seed))
        if aside:
            return self.storage.keep_aside(directory, training_id=training_id, attempt=2)
        return self.storage.publish(directory, training_id=training_id, attempt=1 if training_id else 0)

    def names(self) -> list[str]:
        return sorted(model.name for model in self.storage.list())


@pytest.fixture
async def shop(tmp_path: Path, ktrdr: Run, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    async with running_backend(tmp_path) as backend:
        storage = ModelStorage(backend.app.settings.models_dir)
        yield Shop(f"127.0.0.1:{backend.app.port}", storage, ktrdr, tmp_path)


def documented(kind: str) -> list[str]:
    """Return the keys of a JSON line as docs/cli.md has them."""
    (row,) = [line for line in (ROOT / "docs" / "cli.md").read_text().splitlines() if line.startswith(f"| `{kind}` |")]
    return ["type", *row.rsplit("`", 2)[1].split(", ")]


def words(line: str) -> str:
    return " ".join(line.split())


def names_of(ran: Ran) -> list[str]:
    assert ran.code == 0, ran.err
    return [line["name"] for line in ran.lines]


# list


async def test_list_of_an_empty_store_says_what_to_do(shop: Shop) -> None:
    ran = await shop("list")
    assert (ran.code, "no models stored yet; train one with: ktrdr" in ran.out) == (0, True)
    assert "nothing is kept aside" in (await shop("list", "--kept-aside")).out
    assert "no stored model is like that" in (await shop("list", "--symbol", "GBPUSD")).out


async def test_list_tells_accuracy_beside_its_baseline_and_aliases(shop: Shop) -> None:
    shop.publish()
    shop.storage.set_alias(SET, "champion", 1)
    ran = await shop("list")
    heading, row = map(words, ran.out.splitlines())
    assert heading == "name test accuracy baseline F1 validation loss size created (UTC) aliases"
    assert row.startswith(f"{SET}_v1 50.0 % 40.0 % 50.0 % 1.1000 ")
    assert set(row.replace(",", "").split()[-2:]) == {"latest", "champion"}


async def test_json_line_of_a_model_has_the_documented_fields(shop: Shop) -> None:
    shop.publish()
    for ran in (await shop("list", "--json"), await shop("show", "small", "--json")):
        (line,) = ran.lines
        assert list(line) == documented("model")
        assert line["lineage"]["seed"] == 1
    assert line["evaluation"] is not None


async def test_list_filters_and_sorts(shop: Shop) -> None:
    first, second = shop.publish(training_id="t1"), shop.publish(seed=2)
    kept = shop.publish(training_id="t9", aside=True)
    shop.storage.set_alias(SET, "champion", 1)
    assert names_of(await shop("list", "--json")) == [second.name, first.name]
    assert names_of(await shop("list", "--json", "--limit", "1")) == [second.name]
    assert names_of(await shop("list", "--json", "--sort", "name")) == [first.name, second.name]
    assert names_of(await shop("list", "--json", "--training", "t1")) == [first.name]
    assert names_of(await shop("list", "--json", "--alias", "champion", "--strategy", "small")) == [first.name]
    assert names_of(await shop("list", "--json", "--timeframe", "4h")) == []
    assert names_of(await shop("list", "--json", "--kept-aside")) == [kept.name]
    day = first.create_time.date().isoformat()
    assert len(names_of(await shop("list", "--json", "--since", day, "--until", day))) == 2
    assert names_of(await shop("list", "--json", "--since", "2100-01-01")) == []
    assert names_of(await shop("list", "--json", "--until", "2000-01-01")) == []
    assert "aside/t9-2" in (await shop("list", "--kept-aside")).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "--since", "yesterday"), "--since must be a day such as 2017-06-30, was 'yesterday'"),
        (("list", "--sort", "beauty"), "--sort must be one of"),
        (("list", "--symbol", "../x"), "'../x'"),
        (("show", "nothing"), "there is no model 'nothing'"),
        (("pull", "nothing"), "there is no model 'nothing'"),
        (("pull", "small", "--compression", "rar"), "--compression must be one of"),
        (("import", "nothing"), "is not a directory"),
        (("delete", "nothing", "--yes"), "nothing"),
        (("alias", SET, "champion"), "give a version such as 3, or --remove"),
        (("alias", SET, "champion", "3", "--remove"), "give a version such as 3, or --remove"),
        (("alias", SET, "champion", "three"), "VERSION must be the number of a version such as 3 or v3, was 'three'"),
        (("alias", SET, "champion", "0"), "was '0'"),
        (("alias", SET, "champion", "1", "--expect", "x"), "such as 3 or v3, or none, was 'x'"),
        (("alias", SET, "latest", "1"), "latest"),
        (("gc", "--keep-versions", "0"), "--keep-versions must be at least 1, was '0'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_bad_input_is_one_sentence_and_code_2(shop: Shop, arguments: tuple[str, ...], message: str) -> None:
    shop.publish()
    ran = await shop(*arguments)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert message in ran.err


# show


async def test_show_tells_where_a_model_comes_from_and_its_files(shop: Shop) -> None:
    stored = shop.publish(seed=7, training_id="t1")
    ran = await shop("show", "small")
    lines = list(map(words, ran.out.splitlines()))
    assert "training t1, attempt 1" in lines
    assert "seed 7" in lines
    for file in stored.files:
        assert any(line.startswith(file.name) and line.endswith(file.sha256) for line in lines), file.name
    assert "test accuracy 50.0 %, majority baseline 40.0 %: +10.0 points" in lines
    assert "kept aside" not in ran.out


async def test_show_says_that_it_is_kept_aside(shop: Shop) -> None:
    shop.publish(training_id="t9", aside=True)
    ran = await shop("show", "aside/t9-2")
    assert "never published" in ran.out, ran.err


# pull, import


async def test_pull_brings_the_files_below_the_working_directory(shop: Shop) -> None:
    stored = shop.publish()
    ran = await shop("pull", "small")
    assert ran.code == 0, ran.err
    here = shop.tmp_path / "here" / "small" / "EURUSD_1h_v1"
    assert {path.name for path in here.iterdir()} == {file.name for file in stored.files}
    assert all((here / file.name).read_bytes() == (stored.path / file.name).read_bytes() for file in stored.files)
    first, then = ran.out.splitlines()
    assert first.startswith(f"{stored.name} is in small/EURUSD_1h_v1: {len(stored.files)} files, ")
    assert then == f"next   ktrdr --backend {shop.address} models predict small/EURUSD_1h_v1"


async def test_pull_again_takes_nothing_and_says_the_same_as_json(shop: Shop) -> None:
    stored = shop.publish()
    target = shop.tmp_path / "there"
    for _ in range(2):
        ran = await shop("pull", f"{SET}_latest", "--to", str(target), "--json", "--compression", "gzip")
        (line,) = ran.lines
        assert list(line) == documented("model_pull")
        assert (line["name"], line["directory"], line["size_bytes"]) == (stored.name, str(target), stored.size_bytes)
        assert line["artifact_digest"] == stored.digest
        assert [file["name"] for file in line["files"]] == [file.name for file in stored.files]


async def test_pull_over_another_model_is_refused(shop: Shop) -> None:
    shop.publish()
    shop.publish(seed=2)
    assert (await shop("pull", f"{SET}_v1", "--to", "m")).code == 0
    ran = await shop("pull", f"{SET}_v2", "--to", "m")
    assert ran.code == 2
    assert "choose another directory" in ran.err


async def test_pull_that_fails_says_that_what_has_arrived_is_kept(shop: Shop) -> None:
    models = FakeModels({"a.json": b"a" * 100, "model.safetensors": b"w" * 100})
    models.breaks = [whole, swap(b"x" * 100), swap(b"x" * 100)]
    async with serving(models.add_to) as address:
        ran = await shop.ktrdr(address, "models", "pull", "fake", "--to", "m")
        assert ran.code == 3
        note, error = ran.err.splitlines()
        assert note == "not complete: what has arrived is kept in m; the same command goes on from it"
        assert error.startswith("ktrdr: model.safetensors arrived twice")
        assert (await shop.ktrdr(address, "models", "pull", "fake", "--to", "m")).code == 0


async def test_pull_on_a_terminal_shows_how_far_it_is_and_says_when_it_goes_on(shop: Shop) -> None:
    models = FakeModels({"model.safetensors": bytes(5 << 19)}, breaks=[cut_after(2)])

    def pull(address: str) -> tuple[int, str]:
        terminal = Terminal(
            Cli(shop.tmp_path / "state"),
            "--backend",
            address,
            "models",
            "pull",
            "fake",
            "--to",
            str(shop.tmp_path / "m"),
        )
        terminal.wait_for("1.0/2.5 MiB")
        assert "pulling fake/EURUSD_1h_v1" in terminal.shown
        return terminal.close(), terminal.shown

    async with serving(models.add_to) as address:
        code, shown = await asyncio.to_thread(pull, address)
    assert code == 0, shown
    assert "cut; going on ..." in shown
    assert shown.splitlines()[-2].endswith(f"fake/EURUSD_1h_v1 is in {shop.tmp_path / 'm'}: 1 file, 2.5 MiB, verified")


async def test_name_that_leads_elsewhere_needs_a_directory_to_be_said(shop: Shop) -> None:
    models = FakeModels({"model.safetensors": b"w"}, name="../evil")
    async with serving(models.add_to) as address:
        ran = await shop.ktrdr(address, "models", "pull", "..")
        assert ran.code == 3
        assert "'../evil', which is no name" in ran.err
        assert (await shop.ktrdr(address, "models", "pull", "..", "--to", "m")).code == 0


async def test_pulled_model_is_imported_as_the_next_version_and_only_once(shop: Shop) -> None:
    stored = shop.publish(training_id="t1")
    await shop("pull", "small", "--to", "m")
    for _ in range(2):
        ran = await shop("import", "m")
        assert ran.code == 0, ran.err
        assert ran.out.splitlines()[0] == f"m is stored as {SET}_v2"
    (line,) = (await shop("import", "m", "--json", "--compression", "none")).lines
    assert (line["name"], line["artifact_digest"], line["training_id"]) == (f"{SET}_v2", stored.digest, "")
    assert shop.names() == [f"{SET}_v1", f"{SET}_v2"]


# delete, alias, gc


async def test_delete_without_a_terminal_wants_yes(shop: Shop) -> None:
    first = shop.publish()
    shop.publish(seed=2)
    refused = await shop("delete", first.name)
    assert (refused.code, len(shop.names())) == (2, 2)
    assert "add --yes" in refused.err
    ran = await shop("delete", first.name, "--yes")
    assert (ran.code, ran.out) == (0, f"deleted {first.name}\n")
    assert shop.names() == [f"{SET}_v2"]
    assert (await shop("delete", f"{SET}_v2", "--yes", "--json")).lines == [
        {"type": "model_delete", "name": f"{SET}_v2"}
    ]


async def test_delete_of_what_an_alias_points_at_wants_force(shop: Shop) -> None:
    stored = shop.publish()
    shop.storage.set_alias(SET, "champion", 1)
    refused = await shop("delete", stored.name, "--yes", "--json")
    assert refused.code == 2
    assert "champion" in refused.err
    assert refused.lines[0]["reason"] == "MODEL_REFERENCED"
    assert shop.names() == [stored.name]
    assert (await shop("delete", stored.name, "--yes", "--force")).code == 0
    assert shop.names() == []


async def test_delete_on_a_terminal_asks(shop: Shop) -> None:
    stored = shop.publish()

    def answer(text: str) -> tuple[int, str]:
        cli = Cli(shop.tmp_path / "state")
        terminal = Terminal(cli, "--backend", shop.address, "models", "delete", stored.name)
        terminal.wait_for("It cannot be brought back. [y/N]")
        terminal.type(text)
        return terminal.close(), terminal.shown

    code, shown = await asyncio.to_thread(answer, "n\n")
    assert (code, "nothing was deleted" in shown, shop.names()) == (4, True, [stored.name])
    code, shown = await asyncio.to_thread(answer, "y\n")
    assert (code, f"deleted {stored.name}" in shown, shop.names()) == (0, True, [])


async def test_alias_is_set_moved_as_expected_and_removed(shop: Shop) -> None:
    for seed in range(2):
        shop.publish(seed=seed)
    ran = await shop("alias", SET, "champion", "1", "--expect", "none")
    assert (ran.code, ran.out) == (0, f"{SET}_champion is {SET}_v1\n")
    conflict = await shop("alias", SET, "champion", "2", "--expect", "none")
    assert conflict.code == 3
    assert shop.storage.get(f"{SET}_champion").version == 1
    moved = await shop("alias", SET, "champion", "v2", "--expect", "v1", "--json")
    assert moved.lines == [
        {"type": "model_alias", "parent": SET, "alias": "champion", "version": 2, "name": f"{SET}_v2"}
    ]
    assert list(moved.lines[0]) == documented("model_alias")
    removed = await shop("alias", SET, "champion", "--remove")
    assert removed.out == f"{SET}_champion is removed\n"
    assert shop.storage.get("small").aliases == ("latest",)


async def test_gc_tells_what_it_would_remove_and_removes_it_with_yes(shop: Shop) -> None:
    for seed in range(3):
        shop.publish(seed=seed)
    nothing = await shop("gc", "--yes")
    assert (nothing.code, nothing.out) == (0, "there is nothing to remove\n")
    dry = await shop("gc", "--keep-versions", "2", "--dry-run")
    assert words(dry.out.splitlines()[1]).startswith(f"{SET}_v1 ")
    assert "would be removed" in dry.out
    refused = await shop("gc", "--keep-versions", "2")
    assert (refused.code, "add --yes" in refused.err, len(shop.names())) == (2, True, 3)
    as_json = await shop("gc", "--keep-versions", "2", "--yes", "--json")
    (line,) = as_json.lines
    assert list(line) == documented("garbage")
    assert (line["name"], line["is_removed"]) == (f"{SET}_v1", True)
    assert shop.names() == [f"{SET}_v2", f"{SET}_v3"]


async def test_gc_on_a_terminal_asks_once_it_has_said_what(shop: Shop) -> None:
    for seed in range(2):
        shop.publish(seed=seed)

    def answer(text: str) -> tuple[int, str]:
        cli = Cli(shop.tmp_path / "state")
        terminal = Terminal(cli, "--backend", shop.address, "models", "gc", "--keep-versions", "1")
        terminal.wait_for("Remove them? [y/N]")
        assert f"{SET}_v1" in terminal.shown
        terminal.type(text)
        return terminal.close(), terminal.shown

    code, shown = await asyncio.to_thread(answer, "n\n")
    assert (code, "nothing was removed" in shown, len(shop.names())) == (4, True, 2)
    code, shown = await asyncio.to_thread(answer, "y\n")
    assert (code, "removed 1 " in shown, len(shop.names())) == (0, True, 1)


def test_words_of_the_option_are_those_of_the_compression() -> None:
    assert [word.value for word in CompressionWord] == [each.value for each in Compression]
