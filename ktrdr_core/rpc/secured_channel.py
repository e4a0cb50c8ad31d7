"""Channels whose calls carry a token, and that go on with new certificates when their files are replaced.

gRPC's own call credentials start a thread for each call, and its channels keep the certificates they were made with. So
a call of these channels is a call of a channel beneath, which is exchanged for a new one when the certificates change:
calls under way end on the one they began on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from ktrdr_core.rpc.authentication import HEADER, SCHEME
from ktrdr_core.rpc.channel_security import ChannelSecurity

Options = Sequence[tuple[str, int | str]]


@dataclass(eq=False)
class _Beneath:
    """A channel with the certificates of its time, and how many calls are under way on it."""

    generation: int
    channel: grpc.aio.Channel
    num_calls: int = 0


class SecuredChannel(grpc.aio.Channel):
    """A channel for asyncio.

    Args:
        address: host:port.
        security: Whose credentials and token it uses.
        options: Of the channels beneath.
    """

    def __init__(self, address: str, security: ChannelSecurity, options: Options) -> None:
        self._address = address
        self._security = security
        self._options = list(options)
        self._outdated: set[_Beneath] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._newest = self._open(*security.credentials())

    @property
    def num_outdated(self) -> int:
        """Channels of certificates before that still have calls under way."""
        return len(self._outdated)

    def begin_call(self) -> _Beneath:
        """Return the channel to make a call on; `end_call` must follow."""
        beneath = self._exchanged()
        beneath.num_calls += 1
        return beneath

    def end_call(self, beneath: _Beneath) -> None:
        """Close the channel of a call that has ended, if it was the last on one that is outdated."""
        beneath.num_calls -= 1
        if beneath in self._outdated and not beneath.num_calls:
            self._close_soon(beneath)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what each call carries."""
        return _metadata(self._security, self._address)

    def _exchanged(self) -> _Beneath:
        generation, credentials = self._security.credentials()
        if generation != self._newest.generation:
            before, self._newest = self._newest, self._open(generation, credentials)
            self._outdated.add(before)
            if not before.num_calls:
                self._close_soon(before)
        return self._newest

    def _open(self, generation: int, credentials: grpc.ChannelCredentials | None) -> _Beneath:
        if credentials is None:
            return _Beneath(generation, grpc.aio.insecure_channel(self._address, options=self._options))
        return _Beneath(generation, grpc.aio.secure_channel(self._address, credentials, options=self._options))

    def _close_soon(self, beneath: _Beneath) -> None:
        self._outdated.discard(beneath)
        task = asyncio.get_running_loop().create_task(beneath.channel.close())
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        channels = [beneath.channel for beneath in (*self._outdated, self._newest)]
        self._outdated.clear()
        await asyncio.gather(*self._closings, *(channel.close(grace) for channel in channels))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._exchanged().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._newest.channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._exchanged().channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*args, **kwargs))


class _Method:
    """One RPC of a channel."""

    def __init__(self, channel: SecuredChannel, make: Callable[[grpc.aio.Channel], Any]) -> None:
        self._channel = channel
        self._make = make
        self._made_of: _Beneath | None = None
        self._made: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self._channel
        beneath = channel.begin_call()
        try:
            if beneath is not self._made_of:
                self._made_of, self._made = beneath, self._make(beneath.channel)
            call = self._made(*args, **_with(channel.metadata(), kwargs))
        except BaseException:
            channel.end_call(beneath)
            raise
        call.add_done_callback(lambda _: channel.end_call(beneath))
        return call


class SecuredSyncChannel(grpc.Channel):
    """A channel for threads, with the credentials of the moment it was opened.

    Args:
        address: host:port.
        security: Whose credentials and token it uses.
        options: Of the channel beneath.
    """

    def __init__(self, address: str, security: ChannelSecurity, options: Options) -> None:
        _, credentials = security.credentials()
        self._security = security
        self._address = address
        self._beneath = (
            grpc.insecure_channel(address, options=list(options))
            if credentials is None
            else grpc.secure_channel(address, credentials, options=list(options))
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what each call carries."""
        return _metadata(self._security, self._address)

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        self._beneath.subscribe(callback, try_to_connect or False)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._beneath.unsubscribe(callback)

    def close(self) -> None:
        self._beneath.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _SyncMethod(self, self._beneath.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _SyncMethod(self, self._beneath.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _SyncMethod(self, self._beneath.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _SyncMethod(self, self._beneath.stream_stream(*args, **kwargs))


class _SyncMethod:
    """One RPC of a channel for threads."""

    def __init__(self, channel: SecuredSyncChannel, beneath: Any) -> None:
        self._channel = channel
        self._beneath = beneath

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._beneath(*args, **_with(self._channel.metadata(), kwargs))

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        return self._beneath.with_call(*args, **_with(self._channel.metadata(), kwargs))

    def future(self, *args: Any, **kwargs: Any) -> Any:
        return self._beneath.future(*args, **_with(self._channel.metadata(), kwargs))


def _metadata(security: ChannelSecurity, address: str) -> tuple[tuple[str, str], ...]:
    token = security.token_for(address)
    return () if token is None else ((HEADER, SCHEME + token),)


def _with(metadata: tuple[tuple[str, str], ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "metadata": (*(kwargs.get("metadata") or ()), *metadata)} if metadata else kwargs
