"""A child process of the fork server: started off the loop, ended with its whole group, verified gone.

`ChildProcess` is what the process engine's sessions stand on; `run_in_child` runs one function in a child and brings
its answer or its error back, for work that a service process must not do itself (anything that loads torch).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from ktrdr_core.errors import InternalError, KtrdrError, UnavailableError, WorkerDiedError
from ktrdr_core.execution.fork_server import process_context, start_fork_server
from ktrdr_core.execution.process_group import ask_for_signal_when_parent_dies, end_group, kill_group

T = TypeVar("T")

# The one thread that starts children and reads their exit codes. multiprocessing polls every child it knows whenever
# one is started, and two threads that poll one child read its exit code twice and keep the second, wrong answer. A
# start may also wait seconds for a cold fork server, which the loop's own threads must not.
_LAUNCHER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-launcher")


class ChildProcess:
    """One child; `main(*args)` runs in it after it has become the leader of a group of its own.

    Args:
        main: Importable function; what it raises goes to stderr and ends the child with exit code 1.
        args: Picklable arguments, plus `inherited` ends of pipes.
        inherited: Connections among `args` that belong to the child; the parent's copies are closed after the start.
        name: Shown in the process's name within multiprocessing.
    """

    def __init__(
        self,
        main: Callable[..., None],
        args: tuple[Any, ...],
        *,
        inherited: tuple[Connection, ...] = (),
        name: str = "",
    ) -> None:
        self._process = process_context().Process(target=_child_main, args=(main, args), name=name or None)
        self._inherited = inherited
        self._is_kill_wanted = False
        self._gone = asyncio.Event()
        self.pid = 0

    async def start(self) -> None:
        """Start the child.

        Raises:
            UnavailableError: The machine or the fork server could not start it.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(_LAUNCHER, self._start)
        except (OSError, EOFError) as error:
            if self._is_kill_wanted:
                raise UnavailableError("the process was given up before it had started") from error
            raise UnavailableError(
                f"a worker process could not be started ({type(error).__name__}: {error}); "
                "see the log of this service, and try again once memory and process limits allow it"
            ) from error
        self.pid = cast(int, self._process.pid)
        # multiprocessing joins its children at exit; without this a program that ends in a hurry would hang there.
        atexit.register(self.kill)
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._on_gone)
        if self._is_kill_wanted:
            kill_group(self.pid)

    def _start(self) -> None:
        try:
            if self._is_kill_wanted:
                raise ProcessLookupError("given up while it waited for its turn")
            start_fork_server()
            self._process.start()
            if self._is_kill_wanted:  # here too: the loop may have ended meanwhile
                kill_group(cast(int, self._process.pid))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the parent's copies of the child's pipe ends; all there is to do for a child that never starts."""
        for connection in self._inherited:
            connection.close()

    def _on_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._gone.set()

    def kill(self) -> None:
        """Send SIGKILL to the child's group, now or as soon as it is started."""
        self._is_kill_wanted = True
        if self.pid and not self._gone.is_set():
            kill_group(self.pid)

    async def wait_gone(self) -> int:
        """Return the exit code (negative: the signal's number) once no process of the child's group is alive.

        Called once.
        """
        await self._gone.wait()
        await end_group(self.pid)
        atexit.unregister(self.kill)
        return await asyncio.get_running_loop().run_in_executor(_LAUNCHER, self._read_exit_code)

    def _read_exit_code(self) -> int:
        exit_code = cast(int, self._process.exitcode)
        self._process.close()
        return exit_code


def _child_main(main: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run `main(*args)` as the leader of a new process group; never returns.

    Ends by os._exit: tearing the interpreter down takes longer than a cancel may.
    """
    os.setsid()
    # Ctrl-C and a supervisor's SIGTERM mean the service; the parent ends its children by the flag or by SIGKILL.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    ask_for_signal_when_parent_dies(signal.SIGKILL)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    exit_code = 1
    try:
        main(*args)
        exit_code = 0
    except BaseException:  # noqa: BLE001  # the last frame of a process: what it raised must reach the log, whatever it is
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)


def _end_with_parent() -> None:
    """Kill this child's whole group when its parent is gone, however it went."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpgid(0), signal.SIGKILL)


async def run_in_child(function: Callable[..., T], *args: object, timeout_s: float) -> T:
    """Run `function(*args)` in a child process and return what it returned.

    Args:
        function: Importable function; its arguments and its answer must pickle.
        args: Its arguments.
        timeout_s: The child is killed after this.

    Cancelled, it kills the child and returns once it is gone. One that the fork server has yet to start is not waited
    for: a cold server answers only after its warm-up, and the child is killed as soon as there is one.

    Raises:
        KtrdrError: What the function raised, if it was of our error tree.
        InternalError: It raised something else; the traceback is on this process's stderr.
        WorkerDiedError: The child died or ran out of time.
        UnavailableError: The child could not be started.
    """
    reader, writer = process_context().Pipe(duplex=False)
    child = ChildProcess(_answer, (function, args, writer), inherited=(writer,), name=function.__name__)
    work = asyncio.ensure_future(_receive(child, reader))
    loop = asyncio.get_running_loop()
    timer = loop.call_later(timeout_s, child.kill)
    limit = f"(the limit is {timeout_s:g} s); see the log of this service"
    try:
        answer, exit_code = await asyncio.shield(work)
    except UnavailableError as unstarted:
        if loop.time() < timer.when():
            raise
        raise WorkerDiedError(f"{function.__name__} did not begin in its process {limit}") from unstarted
    except asyncio.CancelledError:
        child.kill()
        if child.pid:
            await asyncio.wait([work])
        else:
            work.add_done_callback(_forget)
        raise
    finally:
        timer.cancel()
    if answer is None:
        raise WorkerDiedError(f"{function.__name__} did not finish in its process: {describe_exit(exit_code)} {limit}")
    value, error = pickle.loads(answer)  # noqa: S301  # written by our own child a moment ago
    if error is not None:
        raise error
    return cast(T, value)


def _forget(work: asyncio.Future[Any]) -> None:
    """Take the error of work nobody waits for any more."""
    if not work.cancelled():
        work.exception()


async def _receive(child: ChildProcess, reader: Connection) -> tuple[bytes | None, int]:
    """Return the child's answer, None if it gave none, and its exit code; the child is gone then."""
    with reader:
        await child.start()
        answer = await asyncio.to_thread(_read_answer, reader)
        return answer, await child.wait_gone()


def _read_answer(reader: Connection) -> bytes | None:
    try:
        return reader.recv_bytes()
    except EOFError:
        return None


def _answer(function: Callable[..., object], args: tuple[Any, ...], writer: Connection) -> None:
    """Run in the child: send back (value, error), pickled."""
    value: object = None
    raised: KtrdrError | None = None
    try:
        value = function(*args)
    except KtrdrError as error:
        raised = error
    except Exception as error:  # noqa: BLE001  # the edge of a process: the parent must learn of every failure
        traceback.print_exc()
        raised = InternalError(f"{function.__name__} failed with {type(error).__name__}; see the log of this service")
    writer.send_bytes(pickle.dumps((value, raised)))


def describe_exit(exit_code: int) -> str:
    """Return how a process ended, for people: `ended by SIGKILL` or `exit code 1`."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}"
