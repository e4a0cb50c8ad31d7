"""Send a Train so that a Ctrl-C before its answer leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.cli import json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.signals import signals
from ktrdr_client.types import Training
from ktrdr_core.errors import IllegalStateError, KtrdrError

_WITHDRAW_S = 10.0
_REASON = "Ctrl-C in ktrdr before Train was answered"


async def send_train(
    session: CliSession,
    client: AsyncClient,
    sending: Coroutine[Any, Any, Training],
    *,
    request_id: str,
    is_own_id: bool,
) -> Training | ExitCode:
    """Return what Train answered, or the exit code if it was interrupted before.

    An interrupted Train may have arrived, and its training would run unseen: it is cancelled by its request_id. Not so
    one whose request_id the user gave: that may name a training of an earlier command, and the user can find it again.

    Args:
        session: This invocation.
        client: Where it is sent.
        sending: The call.
        request_id: What it was given.
        is_own_id: Whether this invocation made it up.
    """
    async with signals() as arrived:
        asked = asyncio.create_task(sending)
        interrupted = asyncio.create_task(arrived.get())
        try:
            await asyncio.wait({asked, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return await asked
        finally:
            for task in (asked, interrupted):
                task.cancel()
            await asyncio.wait({asked, interrupted})
        if asked.done() and not asked.cancelled() and asked.exception() is None:
            return asked.result()  # the answer came while it was being called off
        by_hand = session.command(f"cancel --request-id {request_id}")
        if not is_own_id:
            session.note(f"interrupted before the backend answered; should it have arrived, end it with: {by_hand}")
            return ExitCode.INTERRUPTED
        session.note("interrupted before the backend answered; cancelling ... (Ctrl-C again ends at once)")
        withdrawing = asyncio.create_task(_withdraw(session, client, request_id))
        again = asyncio.create_task(arrived.get())
        try:
            await asyncio.wait({withdrawing, again}, timeout=2 * _WITHDRAW_S, return_when=asyncio.FIRST_COMPLETED)
            if withdrawing.done() and withdrawing.result():
                return ExitCode.CANCELLED
        finally:
            again.cancel()
            withdrawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await withdrawing
        session.note(f"the backend did not confirm it; should the training appear, end it with: {by_hand}")
        return ExitCode.INTERRUPTED


async def _withdraw(session: CliSession, client: AsyncClient, request_id: str) -> bool:
    """Cancel by request_id; return whether the backend confirmed it."""
    try:
        ended = await client.cancel_request(request_id, reason=_REASON, retry_for_s=_WITHDRAW_S)
    except IllegalStateError:
        return True  # it has ended: an earlier try of this cancel arrived, or it failed at once
    except KtrdrError as error:
        session.note(error.message)
        return False
    if session.is_json and ended is not None:
        session.write_json(json_lines.line("training", ended))
    session.note("cancelled; nothing is left behind")
    return True
