"""The supervisor of `ktrdr up` and of the embedded pair, with two small stand-ins for the services."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from ktrdr_client.supervisor import Supervisor

from ktrdr_core.errors import UnavailableError
from tests.kit.cli import wait_until_gone

SERVES = """
import os, signal, sys
signal.signal(signal.SIGTERM, {handler})
print("arguments", sys.argv[1:], file=sys.stderr)
print("ktrdr-fake listening on 127.0.0.1:%d" % os.getpid(), flush=True)
{then}
"""
ENDS_WHEN_ASKED = SERVES.format(handler="lambda *_: sys.exit(0)", then="signal.pause()")
IGNORES = SERVES.format(handler="signal.SIG_IGN", then="\nwhile True: signal.pause()")
TALKS_ON = SERVES.format(handler="lambda *_: sys.exit(0)", then="\nwhile True: print('x' * 4096, flush=True)")
NEVER_SERVES = "import sys; sys.exit(3)"


def _supervisor(*, trainer: str = ENDS_WHEN_ASKED, backend: str = ENDS_WHEN_ASKED) -> Supervisor:
    return Supervisor(trainer=[sys.executable, "-c", trainer], backend=[sys.executable, "-c", backend])


def _pid(address: str) -> int:
    return int(address.rpartition(":")[2])  # the stand-ins give their pid as their port


async def test_both_are_started_the_backend_knows_the_trainer_and_both_end(capfd: pytest.CaptureFixture[str]) -> None:
    supervisor = _supervisor()
    addresses = await supervisor.start()
    await supervisor.stop()
    wait_until_gone([_pid(addresses.backend), _pid(addresses.trainer)])
    assert f"arguments ['--trainer', '{addresses.trainer}']" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["backend", "trainer"])
async def test_the_one_that_dies_is_named(name: str) -> None:
    supervisor = _supervisor()
    addresses = await supervisor.start()
    try:
        os.kill(_pid(getattr(addresses, name)), signal.SIGKILL)
        assert str(await supervisor.wait()) == f"the {name} ended with signal SIGKILL"
    finally:
        await supervisor.stop()


@pytest.mark.parametrize("name", ["backend", "trainer"])
async def test_service_that_does_not_start_is_named_and_leaves_nothing_behind(name: str) -> None:
    supervisor = _supervisor(**{name: NEVER_SERVES})
    with pytest.raises(UnavailableError, match=f"the {name} ended with exit code 3 before it served"):
        await supervisor.start()
    await supervisor.stop()


async def test_service_that_ignores_the_request_to_end_is_killed_after_the_limit() -> None:
    supervisor = _supervisor(trainer=IGNORES)
    addresses = await supervisor.start()
    begun = time.monotonic()
    await supervisor.stop(timeout_s=0.2)
    assert time.monotonic() - begun >= 0.2
    wait_until_gone([_pid(addresses.trainer)])


async def test_service_that_goes_on_printing_is_not_blocked() -> None:
    supervisor = _supervisor(backend=TALKS_ON)
    addresses = await supervisor.start()
    await supervisor.stop()
    wait_until_gone([_pid(addresses.backend)])
