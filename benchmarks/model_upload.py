"""A model's way home: 64 MB, 512 MB and 2 GiB of weights to a verified, fsynced, published version.

The sender is the trainer's outbox in a process of its own, the receiver a real backend; the time is from the first look
at the artifact, which lies there with its sums beside it as a worker leaves it, to the backend's confirmation. Beside
it, in the same run: a plain copy of the weights with SHA-256 and fsync, and the usual torch.save + gzip + base64 + JSON
POST (at 64 MB; `python -m benchmarks.http_upload` does others).
The far link has 1 Gbit/s and 60 ms from there to here and back; the bad one drops every connection every 2 s besides.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import http_upload
from benchmarks.process_probe import Footprint
from benchmarks.report import BenchRow
from benchmarks.trainers import DEFAULT_LIMITS
from benchmarks.weights import copy_with_digest, write_large_artifact
from tests.kit.processes import ServiceProcess, a_service, backend_flags

MB = 10**6
SIZES_MB = (64, 512, 2147)
LINK_BYTES_PER_S = 125e6
ROUND_TRIP_S = 0.06
DROP_EVERY_S = 2.0
LIMIT_S = 300.0
"""How long one upload may take."""

_MEMORY_AIM_MIB = 64
_STALL_AIM_MS = 20
_HTTP_SIZE_MB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What one upload took."""

    seconds: float
    sender: Footprint
    backend: Footprint
    forwarded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A network between sender and backend."""

    label: str
    flags: tuple[str, ...]


_FAR_FLAGS = ("--bytes-per-s", str(LINK_BYTES_PER_S), "--latency-s", str(ROUND_TRIP_S / 2))
FAR = Link("1 Gbit/s, 60 ms round trip", _FAR_FLAGS)
BAD = Link(f"the same, dropped every {DROP_EVERY_S:g} s", (*_FAR_FLAGS, "--drop-every-s", str(DROP_EVERY_S)))


def _ask(service: ServiceProcess) -> str:
    """Return the line a process says on SIGUSR1."""
    assert service.process.stdout is not None
    service.process.send_signal(signal.SIGUSR1)
    return service.process.stdout.readline()


@contextmanager
def _a_sender(address: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.upload_sender", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        limit = threading.Timer(LIMIT_S, sender.kill)
        limit.start()
        try:
            yield sender
        finally:
            limit.cancel()
            sender.kill()


def _upload(sender: subprocess.Popen[str], artifact: Path) -> tuple[float, Footprint]:
    assert sender.stdin is not None
    assert sender.stdout is not None
    sender.stdin.write(f"{artifact}\n")
    sender.stdin.flush()
    line = sender.stdout.readline()
    assert line, f"the sender ended with exit code {sender.wait()}"
    answer = json.loads(line)
    return answer["seconds"], Footprint(**answer["footprint"])


def _send(artifact: Path, warm_up: Path, directory: Path, link: Link | None) -> Sent:
    """Upload one artifact to a new backend, which is gone with all it stored afterwards."""
    try:
        with ExitStack() as stack:
            flags = (*backend_flags(directory), "--slots", "0")
            backend = stack.enter_context(a_service("benchmarks.watched_backend", *flags, environment=DEFAULT_LIMITS))
            proxy = None
            if link is not None:
                flags = ("--target", backend.address, *link.flags)
                proxy = stack.enter_context(a_service("tests.kit.tcp_proxy", *flags))
            sender = stack.enter_context(_a_sender((proxy or backend).address))
            _upload(sender, warm_up)
            forwarded = int(_ask(proxy)) if proxy is not None else 0
            _ask(backend)
            seconds, footprint = _upload(sender, artifact)
            return Sent(
                seconds=seconds,
                sender=footprint,
                backend=Footprint.of_line(_ask(backend)),
                forwarded_bytes=int(_ask(proxy)) - forwarded if proxy is not None else 0,
            )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _loopback_rows(size_mb: int, sent: list[Sent], copied_s: list[float], posted_s: float | None) -> list[BenchRow]:
    label = f"upload of {_shown(size_mb)}"
    rate = size_mb / median(one.seconds for one in sent)
    copy_rate = size_mb / median(copied_s)
    rows = [
        BenchRow(
            name=f"{label}: median of {len(sent)}",
            value=rate,
            unit="MB/s",
            baseline_name="plain copy, SHA-256, fsync",
            baseline_value=copy_rate,
            ratio=rate / copy_rate,
            aim=">= 0.5x",
        )
    ]
    if posted_s is not None:
        post_rate = size_mb / posted_s
        rows.append(
            BenchRow(
                name=label,
                value=rate,
                unit="MB/s",
                baseline_name="gzip + base64 + JSON POST",
                baseline_value=post_rate,
                ratio=rate / post_rate,
                aim=">= 20x",
            )
        )
    rows += [
        BenchRow(
            name=f"{label}: memory above idle, {side}",
            value=max(getattr(one, side).peak_mib for one in sent),
            unit="MiB",
            aim=f"< {_MEMORY_AIM_MIB} MiB",
        )
        for side in ("sender", "backend")
    ]
    rows.append(
        BenchRow(
            name=f"{label}: longest stall of the backend's loop",
            value=max(one.backend.stall_ms for one in sent),
            unit="ms",
            aim=f"< {_STALL_AIM_MS} ms",
        )
    )
    return rows


def _link_rows(size_mb: int, link: Link, sent: Sent) -> list[BenchRow]:
    label = f"upload of {_shown(size_mb)} over {link.label}"
    rate = size_mb / sent.seconds
    share = sent.forwarded_bytes / (size_mb * MB)
    return [
        BenchRow(
            name=label,
            value=rate,
            unit="MB/s",
            baseline_name="what the link carries",
            baseline_value=LINK_BYTES_PER_S / MB,
            ratio=rate / (LINK_BYTES_PER_S / MB),
        ),
        BenchRow(name=f"{label}: bytes on the link", value=100 * share, unit="% of its size"),
    ]


def _shown(size_mb: int) -> str:
    return "2 GiB" if size_mb == SIZES_MB[-1] else f"{size_mb} MB"


def run(quick: bool) -> list[BenchRow]:
    """Measure all three sizes, 64 MB and 512 MB three times (quick: 64 MB once, and no bad link)."""
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        directory = Path(name)
        warm_up = directory / "warm-up"
        write_large_artifact(warm_up, 4 * MB, seed=2)
        for size_mb in SIZES_MB[:1] if quick else SIZES_MB:
            artifact = directory / "artifact"
            weights = write_large_artifact(artifact, size_mb * MB)
            tries = 1 if quick or size_mb == SIZES_MB[-1] else 3
            sent, copied_s = [], []
            for _ in range(tries):
                sent.append(_send(artifact, warm_up, directory / "state", None))
                copied_s.append(copy_with_digest(weights, directory / "copy"))
                (directory / "copy").unlink()
            posted_s = http_upload.measure(weights, directory / "http") if size_mb == _HTTP_SIZE_MB else None
            rows += _loopback_rows(size_mb, sent, copied_s, posted_s)
            links = (FAR,) if quick or size_mb == SIZES_MB[0] else (FAR, BAD)
            for link in links:
                rows += _link_rows(size_mb, link, _send(artifact, warm_up, directory / "state", link))
            shutil.rmtree(artifact)
    return rows
