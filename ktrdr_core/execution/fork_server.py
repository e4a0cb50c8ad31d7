"""The fork server all child processes come from: a small, warm, single-threaded process that never knew grpc.

It is an executed process of its own, so starting it late is safe too; it is started first so that it warms up while
the service starts, and so that it inherits nothing of it. Plain fork is never used: it crashes beside grpc's threads.

Children import nothing of the program that started them if that program is a package run by `python -m` (as both
services are). A script that uses the process engine must guard its main code by `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOAD_MODULE = "ktrdr_core.execution.preload"

THREADS_PER_WORKER = 1
"""Two trainings of two threads each on two cores run 80 times slower than with one each, and threads change bits."""


def process_context() -> ForkServerContext:
    """Return the one multiprocessing context of this project."""
    return multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Start the fork server and return at once; it warms up meanwhile. Call it before grpc is imported.

    A fork server that runs is kept; one that died is started anew. It ends with the thread that called this, so call
    it from the main thread.
    """
    process_context().set_forkserver_preload([PRELOAD_MODULE])
    forkserver.ensure_running()


def stop_fork_server() -> None:
    """Kill the fork server, also in the middle of its warm-up; with its children, so end those you care for before.

    The last thing a service does with it. Without this, a service that ends within seconds of its start would have to
    sit the warm-up out: a thread of it may be waiting for the first child, and nothing else wakes that thread.
    """
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # there is no public way
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_training_available() -> str | None:
    """Return why this installation cannot train, or None if it can; never imports torch."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed here, so this machine cannot train; install it with: pip install 'ktrdr[train]'"
    return None


def read_warm_up_error() -> str:
    """Return why the warm-up of the fork server failed, or "" if it did not; run in a child of it."""
    preload = sys.modules.get(PRELOAD_MODULE)
    return "the fork server could not import it" if preload is None else str(preload.WARM_UP_ERROR)
