"""Lets in who has a token of the right scope; refuses everybody else before anything of a request is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from ktrdr_core.errors import KtrdrError, UnauthenticatedError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.caller import missing_scope, set_caller
from ktrdr_core.rpc.errors import to_status
from ktrdr_core.rpc.handlers import Handler, wrap_handler
from ktrdr_core.rpc.scopes import OPEN_RPCS, scopes_for
from ktrdr_core.security.scopes import Scope
from ktrdr_core.security.tokens import TokenEntry, TokenTable
from ktrdr_core.security.watched_files import LOOK_EVERY_S, WatchedFiles

HEADER = "authorization"
SCHEME = "Bearer "
_log = get_logger(__name__)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Must be the outermost interceptor.

    Args:
        tokens: The table, as it is now.
    """

    def __init__(self, tokens: WatchedFiles[TokenTable]) -> None:
        self._tokens = tokens
        self._streams: set[_Stream] = set()
        self._watch: asyncio.Task[None] | None = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        if method in OPEN_RPCS:
            return await continuation(handler_call_details)
        try:
            caller = await self._authenticate(handler_call_details)
            needed = scopes_for(method)
            if not needed & caller.allowed:
                raise missing_scope(caller, needed, method.strip("/"))
        except KtrdrError as error:
            _log.debug("%s refused: %s", method, error.message)  # who floods calls must not fill the disk
            return _refusal(error)
        set_caller(caller)
        handler = await continuation(handler_call_details)
        if handler is None or not (handler.request_streaming or handler.response_streaming):
            return handler
        return wrap_handler(handler, lambda context: self._while_allowed(context, caller, needed))

    @asynccontextmanager
    async def _while_allowed(
        self, context: grpc.aio.ServicerContext[Any, Any], caller: TokenEntry, needed: frozenset[Scope]
    ) -> AsyncIterator[None]:
        """End a stream, which may last for weeks, when its caller's token is revoked."""
        limit = asyncio.timeout(None)
        stream = _Stream(caller, needed, limit)
        try:
            async with limit:
                self._streams.add(stream)
                if self._watch is None:
                    self._watch = asyncio.create_task(self._watch_streams(), name="revoked tokens")
                try:
                    yield
                finally:
                    self._streams.discard(stream)
                    if not self._streams and self._watch is not None:
                        self._watch.cancel()
                        self._watch = None
        except TimeoutError:
            if not limit.expired():
                raise
            await context.abort_with_status(to_status(_unknown_token()))

    async def _watch_streams(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            table = await asyncio.to_thread(self._tokens.get)
            allowed = {entry.sha256: entry.allowed for entry in table.entries}
            now = asyncio.get_running_loop().time()
            for stream in self._streams:
                if not stream.needed & allowed.get(stream.caller.sha256, frozenset()):
                    stream.limit.reschedule(now)

    async def _authenticate(self, details: grpc.HandlerCallDetails) -> TokenEntry:
        table = await asyncio.to_thread(self._tokens.get) if self._tokens.is_due else self._tokens.latest
        found = [value for key, value in details.invocation_metadata or () if key == HEADER]
        if len(found) != 1 or not isinstance(found[0], str) or not found[0].startswith(SCHEME):
            raise UnauthenticatedError(
                "this service wants a token and the call has none; give its file with --token-file or KTRDR_TOKEN_FILE"
            )
        caller = table.find(found[0].removeprefix(SCHEME))
        if caller is None:
            raise _unknown_token()
        return caller


@dataclass(frozen=True, eq=False)
class _Stream:
    """A call that lasts."""

    caller: TokenEntry
    needed: frozenset[Scope]
    limit: asyncio.Timeout


def _unknown_token() -> UnauthenticatedError:
    return UnauthenticatedError(
        "the token of the call is not known here: it was revoked, or is for another service; ask whoever runs the "
        "service for a new one"
    )


def _refusal(error: KtrdrError) -> Handler:
    """Return what answers a call of any kind with a status and reads no message of it."""

    async def refuse(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort_with_status(to_status(error))

    handler: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return handler
