"""Leases of trainers that announce themselves: one stream each, renewed, replaced, expired, interrupted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ktrdr.trainer.v1 import trainer_registry_service_pb2 as pb

from backend_service.orchestration.trainers import Trainers
from ktrdr_core.addresses import is_host_port
from ktrdr_core.errors import InvalidInputError, KtrdrError, UnavailableError

MAX_TRAINER_ID_LENGTH = 128
MAX_ADDRESS_LENGTH = 255
MAX_INFO_BYTES = 65_536  # it is kept for each trainer
MAX_FENCED_IN_ANSWER = 1_000
_TRAINER_ID = re.compile(r"[A-Za-z0-9_.-]+")
# Only a name or a number: gRPC would take "unix:/path" or "dns://server/name" too.
_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")
_NOWHERE = ("0.0.0.0", "[::]")  # noqa: S104  told apart, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAnswer:
    """What a renewal is answered with."""

    lease_s: float
    renew_after_s: float
    fenced_session_ids: tuple[str, ...]


class TrainerRegistry:
    """Holds the leases.

    Args:
        trainers: What is known of trainers; a renewal adds to it.

    Attributes:
        fenced_session_ids: Returns the sessions that a trainer (identity, address) has to end.
    """

    def __init__(self, trainers: Trainers) -> None:
        self.fenced_session_ids: Callable[[str, str], Sequence[str]] = _none_fenced
        self._trainers = trainers
        self._streams: set[_Stream] = set()
        self._interruption: KtrdrError | None = None

    async def hold_lease(self, requests: AsyncIterator[pb.RegisterRequest]) -> AsyncGenerator[LeaseAnswer]:
        """Yield an answer to each renewal, until the trainer ends the stream.

        Raises:
            InvalidInputError: A renewal breaks a rule.
            VersionSkewError: Trainer and backend do not work together.
            NoSlotError: Too many trainers are registered.
            WriteConflictError: Another stream of this trainer took over.
            TrainerLostError: The trainer was silent for too long.
            UnavailableError: The stream began with a long silence, or what `interrupt` was given.
        """
        stream = _Stream(requests)
        trainer_id = ""
        self._streams.add(stream)
        try:
            if self._interruption is not None:
                raise self._interruption
            request = await stream.read(limit_s=self._trainers.lease_s)
            while request is not None:
                _check_renewal(request, trainer_id)
                trainer_id = request.trainer_id
                self._trainers.renew(stream, trainer_id, request.address, request.trainer)
                fenced = self.fenced_session_ids(trainer_id, request.address)
                yield LeaseAnswer(
                    lease_s=self._trainers.lease_s,
                    renew_after_s=self._trainers.renew_s,
                    fenced_session_ids=tuple(fenced[:MAX_FENCED_IN_ANSWER]),
                )
                request = await stream.read()
        finally:
            self._streams.discard(stream)
            self._trainers.leave(stream, trainer_id)

    def interrupt(self, error: KtrdrError) -> None:
        """End every stream, now and later, with this error: the backend stops."""
        self._interruption = error
        for stream in tuple(self._streams):
            stream.end(error)


class _Stream:
    """A stream of renewals that can be ended from outside."""

    def __init__(self, requests: AsyncIterator[pb.RegisterRequest]) -> None:
        self._requests = requests
        self._error: KtrdrError | None = None
        self._reading: asyncio.Timeout | None = None

    def end(self, error: KtrdrError) -> None:
        """Make the read that waits, or else the next one, raise `error`; the first error counts."""
        if self._error is None:
            self._error = error
            if self._reading is not None:
                self._reading.reschedule(asyncio.get_running_loop().time())

    async def read(self, limit_s: float | None = None) -> pb.RegisterRequest | None:
        """Return the next renewal; None if the trainer has ended the stream.

        Raises:
            UnavailableError: Nothing came within the limit.
            KtrdrError: What `end` was given.
        """
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(limit_s) as self._reading:
                return await anext(self._requests, None)
        except TimeoutError:
            raise self._error or UnavailableError(
                f"nothing came on this stream for {limit_s:g} s; send the first renewal at once"
            ) from None
        finally:
            self._reading = None


def _check_renewal(request: pb.RegisterRequest, trainer_id: str) -> None:
    """Check one renewal.

    Raises:
        InvalidInputError: It breaks a rule.
    """
    given = request.trainer_id
    if len(given) > MAX_TRAINER_ID_LENGTH or not _TRAINER_ID.fullmatch(given):
        raise InvalidInputError(
            f"trainer_id must have 1 to {MAX_TRAINER_ID_LENGTH} letters, digits, '-', '_' or '.', "
            f"was {given[:MAX_TRAINER_ID_LENGTH]!r}",
            field="trainer_id",
        )
    if trainer_id and given != trainer_id:
        raise InvalidInputError(
            f"a stream renews one trainer's lease: {trainer_id!r} began it, {given!r} came; open one stream each",
            field="trainer_id",
        )
    host = request.address.rpartition(":")[0]
    is_long = len(request.address) > MAX_ADDRESS_LENGTH
    if is_long or not _HOST.fullmatch(host) or not is_host_port(request.address):
        raise InvalidInputError(
            f"address must be host:port, was {request.address[:MAX_ADDRESS_LENGTH]!r}", field="address"
        )
    if host in _NOWHERE:
        raise InvalidInputError(
            f"address must be one the backend reaches the trainer at, was {request.address!r}; start the trainer with "
            "--advertise-address HOST:PORT",
            field="address",
        )
    if request.trainer.ByteSize() > MAX_INFO_BYTES:
        raise InvalidInputError(
            f"trainer must have at most {MAX_INFO_BYTES} bytes, had {request.trainer.ByteSize()}", field="trainer"
        )


def _none_fenced(trainer_id: str, address: str) -> Sequence[str]:
    """Return none: nobody fences."""
    return ()
