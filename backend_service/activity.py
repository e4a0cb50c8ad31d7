"""Knows when nobody wants anything of this service."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

_MAKERS: dict[str, Callable[..., Any]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class Activity(grpc.aio.ServerInterceptor):
    """Counts RPCs in flight.

    Args:
        is_busy: Whether there is work beside RPCs.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._num_rpcs = 0
        self._last_active = time.monotonic()

    async def wait_idle(self, idle_s: float) -> None:
        """Return once there was neither work nor an RPC for `idle_s` seconds."""
        while True:
            if self._num_rpcs or self._is_busy():
                self._last_active = time.monotonic()
            left_s = self._last_active + idle_s - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, 0.5))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        kind = next((kind for kind in _MAKERS if handler is not None and getattr(handler, kind)), None)
        if kind is None:
            return None
        behaviour = getattr(handler, kind)
        is_generator = inspect.isasyncgenfunction(behaviour)  # the other form of a stream writes to its context
        made: grpc.RpcMethodHandler[Any, Any] = _MAKERS[kind](
            self._counted_stream(behaviour) if is_generator else self._counted(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return made

    def _counted(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            self._num_rpcs += 1
            try:
                answer = behaviour(request, context)
                return await answer if inspect.isawaitable(answer) else answer
            finally:
                self._leave()

        return call

    def _counted_stream(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            self._num_rpcs += 1
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            finally:
                self._leave()

        return stream

    def _leave(self) -> None:
        self._num_rpcs -= 1
        self._last_active = time.monotonic()
