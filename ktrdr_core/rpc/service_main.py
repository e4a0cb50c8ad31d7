"""How the process of a service begins and ends: settings, signals, exit codes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.fork_server import stop_fork_server
from ktrdr_core.logging import LogFormat, configure_logging

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ServiceSettings(Protocol):
    """What every service's settings have."""

    @property
    def log_level(self) -> str: ...

    @property
    def log_format(self) -> LogFormat: ...


S = TypeVar("S", bound=ServiceSettings)


def run_service(
    name: str, settings_class: Callable[..., S], flags: Mapping[str, Any], serve: Callable[[S], Awaitable[None]]
) -> int:
    """Run a service until it ends and return its exit code: 0, 2 for bad settings, 3 for a start that cannot work.

    Args:
        name: What it is called on stderr, for example "ktrdr-backend".
        settings_class: Validates `flags`.
        flags: Those given; the rest comes from the environment and the defaults.
        serve: Serves until told to stop.
    """
    try:
        settings = settings_class(**flags)
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"]))
            if field:
                sys.stderr.write(f"{name}: {field}: {problem['msg']}, was {problem['input']!r}\n")
            else:  # of several settings together: the input would be all of them, secrets too
                sys.stderr.write(f"{name}: {problem['msg'].removeprefix('Value error, ')}\n")
        return 2
    configure_logging(settings.log_level, service=name, format=settings.log_format)

    async def main() -> None:
        try:
            await serve(settings)
        finally:  # a signal more must not turn an orderly end into a killed process
            for number in STOP_SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    try:
        asyncio.run(main())
    except KtrdrError as error:
        sys.stderr.write(f"{name}: {error.message}\n")
        return 3
    finally:
        stop_fork_server()
    return 0


def stop_on_signals(hurry: Callable[[], None]) -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; each further one calls `hurry`."""
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            hurry()
        stopping.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stopping


def say_listening(name: str, host: str, port: int) -> None:
    """Tell the parent process, by one line on stdout, where the service listens."""
    sys.stdout.write(f"{name} listening on {host}:{port}\n")
    sys.stdout.flush()
