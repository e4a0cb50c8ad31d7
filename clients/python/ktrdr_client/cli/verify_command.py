"""`ktrdr models verify`: are the files those that were published, and does the same training give the same model."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ktrdr_client.cli import exit_codes, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.model_source import model_directory
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_client.model_comparison import ReadModel, SeriesVerdict, compare_models
from ktrdr_client.model_types import FileCheck
from ktrdr_client.retraining import causes, is_deletable, retraining_spec
from ktrdr_core.domain.scheduling import Scheduling
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import InvalidInputError, KtrdrError

if TYPE_CHECKING:
    from ktrdr_client.async_client import AsyncClient


async def verify(session: CliSession, model: str, *, retrain: bool, mode: str | None, keep: bool) -> int:
    """Check every file of a model; with `retrain` also train it again and compare the two."""
    if not retrain and (keep or mode is not None):
        raise InvalidInputError("--keep and --mode belong to --retrain; add it, or leave them out", field="--retrain")
    directory = model_directory(model)
    if directory is not None:
        is_sound = await _verify_directory(session, directory)
        if not is_sound or not retrain:
            return ExitCode.OK if is_sound else ExitCode.FAILED
    async with session.client() as client:
        from ktrdr_client.read_model import read_directory, read_stored

        if directory is not None:
            original = await asyncio.to_thread(read_directory, directory)
            return await _retrain(session, client, original, mode=mode, keep=keep)
        checked = await client.verify_model(model)
        _tell_checks(session, checked.model.name, checked.model.artifact_digest, checked.checks)
        if not checked.is_sound:
            return ExitCode.FAILED
        if not retrain:
            return ExitCode.OK
        _, original = await read_stored(client, checked.model.name)
        return await _retrain(session, client, original, mode=mode, keep=keep)


async def _verify_directory(session: CliSession, directory: Path) -> bool:
    from ktrdr_core.storage.artifact import verify_artifact
    from ktrdr_core.storage.artifact_files import artifact_digest, artifact_files
    from ktrdr_core.storage.publication import PUBLICATION_FILE, check_files

    is_published = (directory / PUBLICATION_FILE).is_file()
    if is_published:
        found = await asyncio.to_thread(check_files, directory)
        checks = tuple(FileCheck(name=own.name, is_sound=not own.problem, problem=own.problem) for own in found)
    else:
        await asyncio.to_thread(verify_artifact, directory)
        files = await asyncio.to_thread(artifact_files, directory)
        checks = tuple(FileCheck(name=file.name, is_sound=True, problem="") for file in files)
    is_sound = all(check.is_sound for check in checks)
    digest = await asyncio.to_thread(artifact_digest, directory) if is_sound else ""
    _tell_checks(session, str(directory), digest, checks, is_published=is_published)
    return is_sound


def _tell_checks(
    session: CliSession, name: str, digest: str, checks: tuple[FileCheck, ...], *, is_published: bool = True
) -> None:
    is_sound = all(check.is_sound for check in checks)
    if session.is_json:
        fields = {
            "name": name,
            "artifact_digest": digest,
            "is_sound": is_sound,
            "is_published": is_published,
            "checks": [asdict(check) for check in checks],
        }
        session.write_json(json_lines.line("model_verification", fields))
        return
    rows = [(check.name, "sound" if check.is_sound else check.problem) for check in checks]
    say_table(session, (name, ""), rows, empty=f"{name} has no files")
    session.say("")
    if not is_published:
        session.say(
            f"complete and readable (digest {digest}); in no store, so there is nothing published to compare with"
        )
    elif is_sound:
        session.say(f"sound: every file is what was published (digest {digest})")
    else:
        session.out.print(Text("not sound: do not use it; restore the files, or train again", style="bold red"))


async def _retrain(
    session: CliSession, client: AsyncClient, original: ReadModel, *, mode: str | None, keep: bool
) -> int:
    from ktrdr_client.cli.follow import follow
    from ktrdr_client.cli.send_train import send_train
    from ktrdr_client.read_model import read_stored

    spec = retraining_spec(original, ExecutionMode(mode) if mode else None)
    if not session.is_json:
        session.say("")
        session.say("training it again ...")
    request_id = str(uuid.uuid4())
    sending = client.train(spec, request_id=request_id, scheduling=Scheduling(user=session.settings.user))
    training = await send_train(session, client, sending, request_id=request_id, is_own_id=True)
    if isinstance(training, ExitCode):
        return training
    code = await follow(session, client, training, tells_result=False)
    if code != ExitCode.OK:
        session.note("nothing was compared: the training did not complete")
        return code
    ended = await client.get_training(training.training_id)
    if ended.result is None:
        session.note(f"nothing was compared: training {training.training_id} is {ended.state.lower()}")
        return exit_codes.of_state(ended.state) or ExitCode.FAILED
    made, again = await read_stored(client, ended.result.model_id)
    comparison = compare_models(original, again)
    reasons = () if comparison.is_identical else tuple(causes(comparison))
    is_kept = True
    if comparison.is_identical and not keep and is_deletable(original, made, training.training_id):
        is_kept = not await _delete(session, client, made.name)
    if session.is_json:
        fields = {
            "name": original.name,
            "training_id": training.training_id,
            "retrained": made.name,
            "is_identical": comparison.is_identical,
            "has_same_bars": comparison.has_same_bars,
            "is_kept": is_kept,
            "causes": reasons,
        }
        session.write_json(json_lines.line("model_retraining", fields))
    elif comparison.is_identical:
        session.say(f"trained again: bit for bit the same (digest {again.digest})")
        session.say(f"{made.name} is kept" if is_kept else f"{made.name}, its copy, was deleted again")
    else:
        bars = [own for own in comparison.series if own.verdict is not SeriesVerdict.SAME]
        session.out.print(Text("trained again: not the same", style="bold red"))
        for index, reason in enumerate(reasons):
            session.out.print(Text(f"  {reason}", style="bold red" if index < len(bars) else ""))
        session.say(f"kept as {made.name}; all of it: {session.command(f'models compare {original.name} {made.name}')}")
    return ExitCode.OK if comparison.is_identical else ExitCode.FAILED


async def _delete(session: CliSession, client: AsyncClient, name: str) -> bool:
    """Delete the copy; one that somebody gave an alias meanwhile, or that is gone, is no reason to fail."""
    try:
        await client.delete_model(name)
    except KtrdrError as error:
        session.note(f"{name} was not deleted: {error.message}")
        return False
    return True
