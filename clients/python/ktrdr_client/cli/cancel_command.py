"""`ktrdr cancel`: one training, several, by request id, or all that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.cli import exit_codes, json_lines
from ktrdr_client.cli.confirm import is_confirmed
from ktrdr_client.cli.errors import tell, write_json_error
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.find import find_training_ids
from ktrdr_client.cli.report import tell_end
from ktrdr_client.cli.session import CliSession
from ktrdr_client.types import Training
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import IllegalStateError, InvalidInputError, KtrdrError, UnreachableError

_AT_ONCE = 16
_REASON = "ktrdr cancel"


async def cancel(
    session: CliSession,
    training_ids: Sequence[str],
    *,
    request_id: str | None,
    is_queued: bool,
    yes: bool,
    save_checkpoint: bool,
) -> int:
    """End what is named in one of three ways; the exit code is 0 if all did as asked, else that of the first error."""
    if sum((bool(training_ids), request_id is not None, is_queued)) != 1:
        raise InvalidInputError(
            "name what to cancel: ids, or --request-id, or --queued, and only one of them", field="id"
        )
    async with session.client() as client:
        if request_id is not None:
            return await _cancel_request(session, client, request_id, save_checkpoint=save_checkpoint)
        if is_queued:
            return await _cancel_queued(session, client, yes=yes)
        texts = list(dict.fromkeys(training_ids))
        if len(texts) == 1:
            (found,) = (await find_training_ids(client, texts)).values()
            if isinstance(found, KtrdrError):
                raise found
            _tell(session, await client.cancel(found, save_checkpoint=save_checkpoint, reason=_REASON))
            return ExitCode.OK
        return await _cancel_several(session, client, texts, save_checkpoint=save_checkpoint)


async def _cancel_request(session: CliSession, client: AsyncClient, request_id: str, *, save_checkpoint: bool) -> int:
    ended = await client.cancel_request(request_id, save_checkpoint=save_checkpoint, reason=_REASON)
    if ended is not None:
        _tell(session, ended)
    elif session.is_json:
        session.write_json(json_lines.line("request_cancel", {"request_id": request_id}))
    else:
        session.say(f"no training with request id {request_id} has arrived; it is cancelled if it does within a day")
    return ExitCode.OK


async def _cancel_queued(session: CliSession, client: AsyncClient, *, yes: bool) -> int:
    queued = [each.training_id for each in await client.list_trainings(states=[TrainingState.QUEUED])]
    if not queued:
        session.note("no training is queued")
        return ExitCode.OK
    what = f"{len(queued)} trainings are queued and would be cancelled"
    if not await asyncio.to_thread(
        is_confirmed, session, f"Cancel {len(queued)} queued trainings?", yes=yes, what=what
    ):
        session.note("nothing was cancelled")
        return ExitCode.CANCELLED
    code = await _cancel_several(session, client, queued, save_checkpoint=False, may_have_ended=True)
    if code == ExitCode.OK and not session.is_json:
        session.note(f"{len(queued)} queued trainings have ended")
    return code


async def _cancel_several(
    session: CliSession,
    client: AsyncClient,
    texts: Sequence[str],
    *,
    save_checkpoint: bool,
    may_have_ended: bool = False,
) -> int:
    """Cancel all, a few at once, and tell each as it ends; with `may_have_ended` one that has is no error."""
    found = await find_training_ids(client, texts)
    errors: dict[str, KtrdrError] = {}
    room = asyncio.Semaphore(_AT_ONCE)

    async def cancel_one(text: str, training_id: str | KtrdrError) -> None:
        try:
            if isinstance(training_id, KtrdrError):
                raise training_id
            async with room:
                ended = await client.cancel(training_id, save_checkpoint=save_checkpoint, reason=_REASON)
        except IllegalStateError as error:
            if not may_have_ended:
                errors[text] = error
        except KtrdrError as error:
            errors[text] = error
        else:
            _tell(session, ended)

    async with asyncio.TaskGroup() as group:
        for text, training_id in found.items():
            group.create_task(cancel_one(text, training_id))
    for error in errors.values():
        if isinstance(error, UnreachableError):
            raise error  # as good for all: one sentence
    for text in texts:
        if text in errors:
            error = errors[text]
            error.metadata.setdefault("training_id", text)
            tell(error.message if text in error.message else f"{text}: {error.message}")
            if session.is_json:
                write_json_error(error)
    first = next((errors[text] for text in texts if text in errors), None)
    return ExitCode.OK if first is None else exit_codes.of_error(first)


def _tell(session: CliSession, ended: Training) -> None:
    if session.is_json:
        session.write_json(json_lines.line("training", ended))
    else:
        tell_end(session, ended)
