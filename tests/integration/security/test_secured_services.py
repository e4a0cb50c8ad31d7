"""The real backend, a trainer that registers itself, and the real command, with TLS both ways and tokens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from ktrdr_client import AsyncClient
from ktrdr_client.progress_stream import ReconnectPolicy

from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.security.deployment import renew_certificates
from ktrdr_core.security.scopes import Scope
from tests.kit.builders import REPOSITORY
from tests.kit.cli import STRATEGY, Cli, Ran
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.processes import ServiceProcess, backend_flags
from tests.kit.security import Deployment, a_deployment

LOUD = ("--log-level", "DEBUG")


@dataclass
class House:
    """A backend and a trainer that have found each other."""

    deployment: Deployment
    backend: ServiceProcess
    trainer: ServiceProcess
    logs: tuple[Path, ...]
    cli: Cli

    def run(self, *words: str, who: str = "alice") -> Ran:
        """Run the command as somebody."""
        file = self.deployment.file
        flags = ["--backend", self.backend.address, "--tls-ca", str(file("ca.crt")), "--token-file"]
        flags += [str(file(f"{who}.token")), "--tls-cert", str(file("user.crt")), "--tls-key", str(file("user.key"))]
        return self.cli.run(*flags, *words)

    def client(self, name: str = "alice", **options: Any) -> AsyncClient:
        return AsyncClient(self.backend.address, security=self.deployment.caller(name, shows="user"), **options)


def _start(stack: ExitStack, module: str, flags: list[str], log: Path) -> ServiceProcess:
    stream = stack.enter_context(log.open("a"))
    service = ServiceProcess(module, *flags, *LOUD, log=stream)
    stack.callback(service.kill)
    return service


def _backend_flags(directory: Path, deployment: Deployment) -> list[str]:
    return [*backend_flags(directory), "--slots", "0", *deployment.flags("backend", is_mutual=True)]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    deployment = a_deployment(tmp_path / "security")
    logs = (tmp_path / "backend.log", tmp_path / "trainer.log")
    with ExitStack() as stack:
        backend = _start(stack, "backend_service", _backend_flags(tmp_path, deployment), logs[0])
        flags = ["--data-dir", str(tmp_path / "trainer"), "--bars-dir", str(tmp_path / "no-bars")]
        flags += ["--backend", backend.address, *deployment.flags("trainer", is_mutual=True)]
        trainer = _start(stack, "trainer_service", flags, logs[1])
        yield House(deployment, backend, trainer, logs, Cli(tmp_path / "client"))


async def _until_registered(house: House) -> None:
    async with house.client() as client:

        async def is_there() -> bool:
            return any(each.is_healthy for each in await client.list_trainers())

        await eventually(is_there, what="a registered trainer")


async def test_whole_training_with_tls_tokens_and_a_registered_trainer(house: House) -> None:
    await _until_registered(house)
    ran = await asyncio.to_thread(house.run, "train", STRATEGY, "--epochs", "2", "--mode", "host", "--json")
    assert ran.code == 0, ran.err
    shown = house.run("list", "--json", who="reader").lines[0]
    assert (shown["state"], shown["scheduling"]["user"]) == ("COMPLETED", "alice")
    assert house.run("models", "list", "--json", who="reader").lines[0]["strategy_name"] == "neuro_mean_reversion"

    doctor = house.run("doctor", "--json")
    checks = {line["name"]: line for line in doctor.lines}
    assert doctor.code == 0, doctor.out
    assert "valid until" in checks["tls"]["message"]
    assert checks[f"clock of {house.trainer.address}"]["status"] == "ok", "it was asked with the token"

    refused = house.run("config", "set", "default_mode", "host", "--json")
    assert (refused.code, refused.lines[-1]["reason"]) == (3, "PERMISSION_DENIED")
    assert house.run("config", "set", "default_mode", "host", who="admin").code == 0
    named = house.run("train", STRATEGY, "--user", "bob", "--detach", "--json")
    assert (named.code, named.lines[-1]["reason"]) == (3, "PERMISSION_DENIED")
    _assert_nothing_secret_is_seen(house)


def _assert_nothing_secret_is_seen(house: House) -> None:
    secrets = house.deployment.secrets()
    assert len(secrets) > 10
    for log in house.logs:
        text = log.read_text()
        assert "DEBUG" in text
        assert not [secret for secret in secrets if secret in text], log.name
    for service in (house.backend, house.trainer):
        process = psutil.Process(service.process.pid)
        for each in (process, *process.children(recursive=True)):
            seen = Path(f"/proc/{each.pid}/cmdline").read_bytes() + Path(f"/proc/{each.pid}/environ").read_bytes()
            assert not [secret for secret in secrets if secret.encode() in seen], each


async def test_certificates_and_tokens_change_while_a_training_runs(house: House, tmp_path: Path) -> None:
    deployment = house.deployment
    await _until_registered(house)
    spec = TrainingSpec(
        strategy_yaml=(REPOSITORY / STRATEGY).read_text(),
        epochs=100,
        execution_mode=ExecutionMode.HOST,
    )
    async with house.client(reconnect=ReconnectPolicy(give_up_after_s=PATIENCE_S)) as client:
        training = await client.train(spec)
        watching = asyncio.create_task(client.wait(training.training_id))

        async def has_epoch() -> bool:
            return "epoch" in {event.detail.kind async for event in client.list_training_events(training.training_id)}

        await eventually(has_epoch, what="an epoch")
        renew_certificates(deployment.directory)
        for name in ("backend", "trainer"):
            deployment.add(name, Scope.TRAINER, replace=True)
        for service, name in ((house.backend, "backend"), (house.trainer, "trainer")):
            await eventually(
                lambda service=service, name=name: asyncio.to_thread(_shows, deployment, service.address, name),  # type: ignore[misc]
                what=f"the new certificate of the {name}",
            )
        # Every connection anew, with what there is now.
        house.backend.kill()
        with ExitStack() as stack:
            flags = ["--port", house.backend.port, *_backend_flags(tmp_path, deployment)]
            _start(stack, "backend_service", flags, tmp_path / "backend.log")
            ended = await watching
            assert ended.state.value.upper() == "COMPLETED", ended
            assert ended.result is not None
    _assert_nothing_secret_is_seen_in_logs(house)


def _assert_nothing_secret_is_seen_in_logs(house: House) -> None:
    for log in house.logs:
        text = log.read_text()
        assert not [secret for secret in house.deployment.secrets() if secret in text]


def _shows(deployment: Deployment, address: str, name: str) -> bool:
    """Return whether a new connection is shown the certificate that is stored."""
    der = x509.load_pem_x509_certificate(ssl.get_server_certificate(_pair(address)).encode())
    return der == x509.load_pem_x509_certificate(deployment.file(f"{name}.crt").read_bytes())


def _pair(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
