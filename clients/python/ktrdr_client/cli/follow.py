"""Follow a training to its end, and answer Ctrl-C: detach, stop, or cancel."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from typing import Any

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.cli import exit_codes, formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.report import tell_end
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.signals import signals
from ktrdr_client.cli.views import JsonView, PlainView, View, queue_sentence
from ktrdr_client.types import Training
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import IllegalStateError, KtrdrError

_END_RETRY_S = 60.0  # the backend may restart between the last event and this
_REMIND_S = 300.0
_QUESTION = "\ndetach (d), stop with a checkpoint (s), cancel (c), or go on watching (Enter)? "


async def follow(session: CliSession, client: AsyncClient, training: Training, *, tells_result: bool = True) -> int:
    """Show a training until it ends or the user lets go of it; returns the exit code.

    Without `tells_result` the end of a training that completed is left to the caller.

    Ctrl-C asks on a terminal; a second one detaches at once. Without a terminal the first one detaches, and so does
    SIGTERM always. Detached is exit code 130: the training goes on, but its end is not known here.
    """
    view = _choose_view(session)
    view.begin(training)
    if training.queue is not None and not session.is_json:
        view.note(queue_sentence(training.queue))
    watching = asyncio.create_task(_watch(client, training.training_id, view))
    ending: asyncio.Task[None] | None = None
    try:
        async with signals() as arrived:
            while not watching.done():
                signalled = asyncio.create_task(arrived.get())
                await asyncio.wait({watching, signalled}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    signalled.cancel()
                    break
                choice = "d"
                if signalled.result() is signal.SIGINT and _can_ask(session):
                    view.pause()
                    choice = await _ask(arrived, watching)
                    if watching.done():
                        break
                    view.resume()
                if choice == "d":
                    view.end()
                    _tell_detached(session, training.training_id)
                    return ExitCode.INTERRUPTED
                if choice in ("s", "c") and ending is None:
                    view.note("stopping at the next batch ..." if choice == "s" else "cancelling ...")
                    ending = asyncio.create_task(
                        _end(client, training.training_id, save_checkpoint=choice == "s", view=view)
                    )
        await watching
    finally:
        view.end()
        for task in (watching, ending):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    ended = await client.get_training(training.training_id, retry_for_s=_END_RETRY_S)
    if session.is_json:
        session.write_json(json_lines.line("result", ended))
    elif tells_result or ended.state is not TrainingState.COMPLETED:
        tell_end(session, ended)
    return exit_codes.of_state(ended.state)


def _choose_view(session: CliSession) -> View:
    if session.is_json:
        return JsonView(session)
    if session.out.is_terminal and not session.out.is_dumb_terminal:
        from ktrdr_client.cli.live_view import LiveView

        return LiveView(session)
    return PlainView(session)


def _can_ask(session: CliSession) -> bool:
    return sys.stdin.isatty() and session.out.is_terminal and not session.is_json


async def _watch(client: AsyncClient, training_id: str, view: View) -> None:
    lost_at: float | None = None
    reminders = 0

    def on_reconnect(problem: KtrdrError) -> None:
        nonlocal lost_at, reminders
        if lost_at is None:
            lost_at, reminders = time.monotonic(), 0
            view.note(f"connection lost ({problem.message}); reconnecting ...")
        elif time.monotonic() - lost_at > _REMIND_S * (reminders + 1):
            reminders += 1
            view.note(f"still not connected after {formats.duration(time.monotonic() - lost_at)} ({problem.message})")

    def on_connect() -> None:
        nonlocal lost_at
        if lost_at is not None:
            view.note("connected again")
        lost_at = None

    async for event in client.stream_progress(training_id, on_reconnect=on_reconnect, on_connect=on_connect):
        view.event(event)


async def _end(client: AsyncClient, training_id: str, *, save_checkpoint: bool, view: View) -> None:
    try:
        await client.cancel(training_id, save_checkpoint=save_checkpoint, reason="Ctrl-C in ktrdr")
    except IllegalStateError:
        return  # it ended by itself meanwhile; the stream says how
    except KtrdrError as error:
        view.note(f"it could not be ended: {error.message}")


async def _ask(arrived: asyncio.Queue[signal.Signals], watching: asyncio.Task[None]) -> str:
    """Return "d", "s", "c" or "" (go on); a second Ctrl-C is "d", the end of the training is ""."""
    sys.stderr.write(_QUESTION)
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        text = sys.stdin.readline()
        if not answered.done():
            answered.set_result(text.strip().lower()[:1] if text else "d")

    loop.add_reader(sys.stdin.fileno(), read)
    again = asyncio.create_task(arrived.get())
    try:
        waited: set[asyncio.Future[Any]] = {answered, again, watching}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(sys.stdin.fileno())
        again.cancel()
    if answered.done():
        return answered.result()
    sys.stderr.write("\n")
    return "d" if again.done() and not watching.done() else ""


def _tell_detached(session: CliSession, training_id: str) -> None:
    session.err.print(
        f"detached; training {training_id} goes on. Watch it with: {session.command(f'watch {training_id}')}\n"
        f"Cancel it with: {session.command(f'cancel {training_id}')}",
        markup=False,
    )
