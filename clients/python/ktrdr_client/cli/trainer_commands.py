"""`ktrdr trainers`, `trainers drain` and `trainers undrain`."""

from __future__ import annotations

from ktrdr_client.cli import json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.find import find_trainer
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_client.types import TrainerDevice, TrainerStatus

_SHORT_ID_LENGTH = 8
_COLUMNS = (
    "address",
    "id",
    "health",
    "known by",
    "sessions",
    "slots",
    "devices",
    "torch",
    "version",
    "heard of",
    "latency",
    "",
)


async def trainers(session: CliSession) -> int:
    """List the trainers the backend knows, with their health now."""
    async with session.client() as client:
        found = await client.list_trainers()
    if session.is_json:
        for trainer in found:
            session.write_json(json_lines.line("trainer", trainer))
        return ExitCode.OK
    say_table(
        session,
        _COLUMNS,
        [_row(trainer) for trainer in found],
        empty="this backend knows no trainers; start it with --trainer, or a trainer with --backend HOST:PORT",
    )
    return ExitCode.OK


async def set_draining(session: CliSession, trainer: str, *, is_draining: bool) -> int:
    """Let a trainer get no new sessions, or end that."""
    async with session.client() as client:
        now = await client.set_trainer_draining(await find_trainer(client, trainer), is_draining=is_draining)
    if session.is_json:
        session.write_json(json_lines.line("trainer", now))
    elif is_draining:
        goes_on = {0: "it has none now", 1: "the one it has goes on"}.get(
            now.num_sessions, f"the {now.num_sessions} it has go on"
        )
        session.say(f"{now.address} gets no new sessions; {goes_on}")
    elif now.is_draining:
        session.say(f"{now.address} gets no new sessions still: the trainer itself is stopping")
    else:
        session.say(f"{now.address} gets sessions again")
    return ExitCode.OK


def _row(trainer: TrainerStatus) -> tuple[str, ...]:
    health = "healthy" if trainer.is_healthy else "not healthy"
    return (
        trainer.address,
        trainer.trainer_id[:_SHORT_ID_LENGTH] or "-",
        f"{health}, draining" if trainer.is_draining else health,
        "registration" if trainer.is_registered else "address",
        str(trainer.num_sessions),
        f"{trainer.num_free_slots} of {trainer.num_slots} free" if trainer.is_healthy else "-",
        ", ".join(map(device, trainer.device_details)) or ", ".join(trainer.devices) or "-",
        trainer.torch_version or "-",
        trainer.version or "-",
        "never" if trainer.silence_s is None else f"{trainer.silence_s:.1f} s ago",
        f"{trainer.latency_s * 1000:.1f} ms" if trainer.is_healthy else "-",
        trainer.message,
    )


def device(details: TrainerDevice) -> str:
    """Return a device with its memory, as people read it."""
    memory = "" if details.memory_available_gb is None else f" ({details.memory_available_gb:.1f} GiB free)"
    return f"{details.name}{memory}"
