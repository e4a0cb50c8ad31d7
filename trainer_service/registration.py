"""Announces this trainer to one backend and holds the lease there, for as long as the trainer runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc

from ktrdr_core.errors import KtrdrError, UnavailableError, UnreachableError, VersionSkewError, WriteConflictError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.errors import from_rpc_error

RENEW_AFTER_S = 2.0
"""Until the backend says when."""
ANSWER_TIMEOUT_S = 5.0
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
SKEW_RETRY_S = 30.0
_MIN_RENEW_AFTER_S, _MAX_RENEW_AFTER_S = 0.05, 60.0

_log = get_logger(__name__)
Call = grpc.aio.StreamStreamCall[pb.RegisterRequest, pb.RegisterResponse]


class Registration:
    """The lease at one backend.

    Args:
        backend: Its address (host:port).
        renewal: Builds what a renewal says.
        fence: Told of the sessions whose attempt the backend has given up.
        answer_timeout_s: A backend that answers nothing for so long is connected to anew.
        skew_retry_s: Wait after a backend refused this trainer's version.
        security: TLS and the token of the calls; None is plain text.
    """

    def __init__(
        self,
        backend: str,
        *,
        renewal: Callable[[], Awaitable[pb.RegisterRequest]],
        fence: Callable[[Iterable[str]], None],
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        skew_retry_s: float = SKEW_RETRY_S,
        security: ChannelSecurity | None = None,
    ) -> None:
        self._backend = backend
        self._renewal = renewal
        self._fence = fence
        self._answer_timeout_s = answer_timeout_s
        self._skew_retry_s = skew_retry_s
        self._security = security
        self._is_due = asyncio.Event()
        self._backoff_s = MIN_BACKOFF_S
        self._last_complaint = ""

    def renew_now(self) -> None:
        """Tell the backend at once that something has changed."""
        self._is_due.set()

    async def run(self) -> None:
        """Hold the lease until cancelled, whatever happens to the backend meanwhile."""
        async with open_channel(self._backend, self._security) as channel:
            stub: trainer_registry_service_pb2_grpc.TrainerRegistryServiceAsyncStub
            stub = trainer_registry_service_pb2_grpc.TrainerRegistryServiceStub(channel)
            while True:
                self._is_due.clear()
                try:
                    # Before the stream is opened: a cold trainer looks for its devices for seconds.
                    first = await self._renewal()
                    await self._hold(stub.Register(), first)
                except KtrdrError as error:
                    self._complain(error)
                    await asyncio.sleep(self._pause_s(error))
                except Exception:  # noqa: BLE001 - a defect must not leave the trainer unregistered for good
                    _log.exception("Registering at backend %s broke, trying again", self._backend)
                    await asyncio.sleep(MAX_BACKOFF_S)

    async def _hold(self, call: Call, request: pb.RegisterRequest) -> None:
        """Renew until the stream breaks.

        A read is always pending: without one, a write that meets the end of the stream hides why it ended.
        """
        answer = asyncio.ensure_future(call.read())
        try:
            while True:
                async with asyncio.timeout(self._answer_timeout_s):
                    await call.write(request)
                    response = await asyncio.shield(answer)
                while True:
                    renew_after_s = self._obey(response)
                    answer = asyncio.ensure_future(call.read())
                    if not await self._answered_before(answer, renew_after_s):
                        break
                    response = answer.result()
                self._is_due.clear()
                request = await self._renewal()
        except TimeoutError:
            raise UnreachableError(
                f"backend {self._backend} answered nothing for {self._answer_timeout_s:g} s; check that it runs"
            ) from None
        except asyncio.InvalidStateError:  # grpc's answer to a write after the end
            raise UnreachableError(f"backend {self._backend} ended the lease") from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    def _obey(self, response: object) -> float:
        """Do what the backend says and return when to renew."""
        if not isinstance(response, pb.RegisterResponse):  # grpc's end-of-stream marker
            raise UnavailableError(f"backend {self._backend} ended the lease; it stops, or is restarted")
        if self._last_complaint or self._backoff_s != MIN_BACKOFF_S:
            _log.info("Registered at backend %s again", self._backend)
        self._last_complaint, self._backoff_s = "", MIN_BACKOFF_S
        self._fence(response.fenced_session_ids)
        if not response.HasField("renew_after"):
            return RENEW_AFTER_S
        renew_after_s: float = response.renew_after.ToTimedelta().total_seconds()
        return min(max(renew_after_s, _MIN_RENEW_AFTER_S), _MAX_RENEW_AFTER_S)

    async def _answered_before(self, answer: asyncio.Future[Any], renew_after_s: float) -> bool:
        """Return whether the backend has said something more, or ended the stream, before the next renewal is due."""
        due = asyncio.create_task(self._is_due.wait())
        either: set[asyncio.Future[Any]] = {answer, due}
        try:
            await asyncio.wait(either, timeout=renew_after_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            due.cancel()
        return answer.done()

    def _complain(self, error: KtrdrError) -> None:
        """Log what is wrong, once until something else is."""
        if error.message != self._last_complaint:
            _log.warning("Not registered at backend %s, trying again: %s", self._backend, error.message)
        self._last_complaint = error.message

    def _pause_s(self, error: KtrdrError) -> float:
        if isinstance(error, VersionSkewError):
            return self._skew_retry_s
        if isinstance(error, WriteConflictError):  # another process has this identity; do not fight it at full speed
            return MAX_BACKOFF_S
        backoff_s, self._backoff_s = self._backoff_s, min(self._backoff_s * 2, MAX_BACKOFF_S)
        return backoff_s * random.uniform(0.5, 1.0)
