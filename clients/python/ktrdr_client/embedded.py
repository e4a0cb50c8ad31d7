"""The backend and trainer that the CLI starts for itself: one pair per data directory, found again by a file.

`find_or_start` is the CLI's side; `python -m ktrdr_client.embedded --data-dir D` is the detached process that
supervises the pair. It holds a lock for its whole life, writes `<data-dir>/embedded.json` once both serve, and ends
when the backend has been idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktrdr_client.settings import ClientSettings, environment_of_embedded
from ktrdr_client.supervisor import Supervisor, service_command
from ktrdr_core.errors import KtrdrError, UnavailableError

START_TIMEOUT_S = 60.0
_POLL_S = 0.05
_HEALTH_TIMEOUT_S = 2.0
_MAX_LOG_BYTES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class EmbeddedBackend:
    """What `embedded.json` holds."""

    pid: int
    backend: str
    trainer: str
    bars_dir: str
    strategies_dir: str


def info_path(data_dir: Path) -> Path:
    return data_dir / "embedded.json"


def log_path(data_dir: Path) -> Path:
    return data_dir / "logs" / "embedded.log"


async def find_or_start(settings: ClientSettings, *, on_start: Callable[[], None]) -> EmbeddedBackend:
    """Return the embedded backend of the data directory, started if there is none.

    Args:
        settings: Where its state, bars and strategies are.
        on_start: Called once before one is started, to tell the user.

    Raises:
        UnavailableError: It did not start; the message names its log.
    """
    found = await find_running(settings.data_dir)
    if found is not None:
        return found
    on_start()
    give_up_at = time.monotonic() + START_TIMEOUT_S
    child: subprocess.Popen[bytes] | None = None
    while time.monotonic() < give_up_at:
        if child is None or child.poll() is not None:
            if child is not None and child.returncode != 0:
                raise UnavailableError(
                    f"the embedded backend did not start: {_last_line(log_path(settings.data_dir))} "
                    f"(all of it in {log_path(settings.data_dir)})"
                )
            # The first, or the one before found the lock taken: by a twin that is starting, or by one that is ending.
            child = await asyncio.to_thread(_spawn, settings)
        await asyncio.sleep(_POLL_S)
        found = await find_running(settings.data_dir)
        if found is not None:
            return found
    raise UnavailableError(
        f"the embedded backend did not answer within {START_TIMEOUT_S:.0f} s; see {log_path(settings.data_dir)}"
    )


async def find_running(data_dir: Path) -> EmbeddedBackend | None:
    """Return the running embedded backend; a file left behind by a dead one counts as none."""
    try:
        info = EmbeddedBackend(**json.loads(info_path(data_dir).read_text()))
        os.kill(info.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return info if await _is_serving(info.backend) else None


async def _is_serving(address: str) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from ktrdr_core.rpc.channel import open_channel

    async with open_channel(address) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _spawn(settings: ClientSettings) -> subprocess.Popen[bytes]:
    log = log_path(settings.data_dir)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        stream = log.open("ab")
    except OSError as error:
        raise UnavailableError(
            f"cannot write {log} ({error.strerror}); name another directory with --data-dir"
        ) from error
    with stream:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [
                sys.executable,
                "-m",
                "ktrdr_client.embedded",
                f"--data-dir={settings.data_dir}",
                f"--bars-dir={settings.bars_dir}",
                f"--strategies-dir={settings.strategies_dir}",
                f"--idle-s={settings.embedded_idle_s}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment_of_embedded(),
            start_new_session=True,
        )


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    return lines[-1] if lines else "its log is empty"


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[bool]:
    """Hold the data directory's lock; False if another process does."""
    with (data_dir / "embedded.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _publish(data_dir: Path, info: EmbeddedBackend) -> None:
    temporary = info_path(data_dir).with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(info), indent=2) + "\n")
    temporary.replace(info_path(data_dir))


async def _supervise(arguments: argparse.Namespace) -> int:
    data_dir: Path = arguments.data_dir
    common = ["--host=127.0.0.1", "--port=0", f"--data-dir={data_dir}", f"--bars-dir={arguments.bars_dir}"]
    only_backend = [f"--strategies-dir={arguments.strategies_dir}", f"--exit-when-idle-s={arguments.idle_s:g}"]
    supervisor = Supervisor(
        trainer=service_command("trainer_service", common),
        backend=service_command("backend_service", [*common, *only_backend]),
    )
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    addresses = await supervisor.start()
    try:
        info = EmbeddedBackend(
            pid=os.getpid(),
            backend=addresses.backend,
            trainer=addresses.trainer,
            bars_dir=str(arguments.bars_dir),
            strategies_dir=str(arguments.strategies_dir),
        )
        _publish(data_dir, info)
        watch = asyncio.create_task(supervisor.wait())
        asked = asyncio.create_task(end.wait())
        await asyncio.wait({watch, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if watch.done() and not (watch.result().name == "backend" and watch.result().exit_code == 0):
            sys.stderr.write(f"{watch.result()}; the embedded pair ends\n")
            return 1
        watch.cancel()
        return 0
    finally:
        info_path(data_dir).unlink(missing_ok=True)
        await supervisor.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise one embedded pair until it is idle; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ktrdr_client.embedded")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--bars-dir", type=Path, required=True)
    parser.add_argument("--strategies-dir", type=Path, required=True)
    parser.add_argument("--idle-s", type=float, default=300.0)
    parsed = parser.parse_args(arguments)
    with _only_one(parsed.data_dir) as is_only_one:
        if not is_only_one:
            return 0
        try:
            return asyncio.run(_supervise(parsed))
        except KtrdrError as error:
            sys.stderr.write(f"{error.message}\n")
            return 1


if __name__ == "__main__":
    sys.exit(main())
