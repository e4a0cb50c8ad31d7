"""Every block of docs/security.md, as written but for the addresses, against services that it starts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ktrdr_core.rpc.scopes import SCOPES_BY_RPC
from ktrdr_core.security.scopes import Scope
from tests.kit.cli import ROOT
from tests.kit.documents import fenced_blocks, tables
from tests.kit.eventually import PATIENCE_S, eventually

PAGE = ROOT / "docs" / "security.md"
BLOCKS = fenced_blocks(PAGE)
TESTED: set[str] = set()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Reader:
    """Somebody who types what stands on the page; `office` and `gpu-1` are ports of this machine."""

    home: Path
    backend_port: int
    trainer_port: int

    def text(self, heading: str, number: int = 0) -> str:
        TESTED.add(heading)
        block = BLOCKS[heading][number]
        port = self.trainer_port if "trainer serve" in block else self.backend_port
        for told, here in (
            ("office:50051", f"127.0.0.1:{self.backend_port}"),
            ("gpu-1:50052", f"127.0.0.1:{self.trainer_port}"),
            ("--host 0.0.0.0", f"--host 127.0.0.1 --port {port}"),
        ):
            block = block.replace(told, here)
        return block

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("KTRDR_", "TRAINING_", "USE_TRAINING"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"HOME": str(self.home), "PATH": path, "SECURITY": str(self.home / "ktrdr-security"), "COLUMNS": "120"}
        return {
            **kept,
            **own,
            "KTRDR_BARS_DIR": str(ROOT / "data"),
            "KTRDR_TRAINER_BARS_DIR": str(self.home),
            **variables,
        }

    def type(self, script: str, **variables: str) -> str:
        """Run a script and return what it prints."""
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=self.environment(**variables),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ran.returncode == 0, f"{script}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def serve(self, stack: ExitStack, number: int) -> subprocess.Popen[str]:
        """Start a service and return when it serves."""
        process = subprocess.Popen(
            ["bash", "-euc", f"exec {self.text('Start the services', number)}"],
            env=self.environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stack.callback(_end, process)
        assert process.stdout is not None
        assert "listening on" in process.stdout.readline()
        return process

    def knows_trainer(self) -> bool:
        """Return whether the trainer has announced itself."""
        variables = self.text("Work").splitlines()[0]
        return f"127.0.0.1:{self.trainer_port}" in self.type(f"{variables}\nktrdr trainers")


def _end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("home"), _free_port(), _free_port())
    with ExitStack() as stack:
        reader.type(reader.text("Make everything"))
        for number in (0, 1):
            reader.serve(stack, number)
        asyncio.run(eventually(reader.knows_trainer, what="a registered trainer"))
        yield reader


def test_files_of_the_table_are_those_that_are_made(reader: Reader) -> None:
    ((_, *rows),) = tables(PAGE)["Make everything"]
    told = {name for files, *_ in rows for name in re.findall(r"`([^`]+)`", files)}
    assert told == {path.name for path in (reader.home / "ktrdr-security").iterdir()} - {"bob.token"}


def test_person_works_with_a_token(reader: Reader) -> None:
    out = reader.type(reader.text("Work"))
    assert "valid until" in out
    assert "no problems" in out
    assert re.search(r"neuro_mean_reversion +completed +alice ", out)


def test_client_example_answers(reader: Reader) -> None:
    (code,) = fenced_blocks(PAGE, "python")["Work"]
    for told, here in (
        ("office:50051", f"127.0.0.1:{reader.backend_port}"),
        ('Path("', f'Path("{reader.home}/ktrdr-security/'),
    ):
        code = code.replace(told, here)
    assert "TrainerStatus(" in reader.type(f"python -c {shlex.quote(code)}")


def test_grpcurl_is_answered(reader: Reader) -> None:
    out = reader.type(reader.text("Any gRPC client"))
    assert "ktrdr.training.v1.TrainingService\n" in out
    assert f"127.0.0.1:{reader.trainer_port}" in out
    assert "SERVING" in out


def test_tokens_come_and_go(reader: Reader) -> None:
    out = reader.type(reader.text("Tokens come and go"))
    assert re.search(r"^bob +read ", out, re.MULTILINE)
    table = json.loads((reader.home / "ktrdr-security" / "tokens.json").read_text())
    assert "bob" not in {entry["name"] for entry in table["tokens"]}


def test_certificates_are_renewed_and_work_goes_on(reader: Reader) -> None:
    before = (reader.home / "ktrdr-security" / "backend.crt").read_bytes()
    reader.type(reader.text("Certificates end"))
    assert (reader.home / "ktrdr-security" / "backend.crt").read_bytes() != before
    assert "no problems" in reader.type("\n".join(reader.text("Work").splitlines()[:2]))


def test_scopes_of_the_page_are_those_of_the_program() -> None:
    ((_, *rows),) = tables(PAGE)["Scopes"]
    assert {scope.strip("`") for scope, _ in rows} == set(Scope)
    ((_, admin),) = [row for row in rows if row[0] == "`admin`"]
    needing_admin = {rpc.rpartition("/")[2] for rpc, scopes in SCOPES_BY_RPC.items() if scopes == {Scope.ADMIN}}
    assert set(re.findall(r"[A-Z][a-z]+[A-Z]\w+", admin)) == needing_admin


def test_every_block_is_run_by_a_test() -> None:
    assert set(BLOCKS) == TESTED
