"""Knows when nobody wants anything of this service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from ktrdr_core.rpc.handlers import wrap_handler


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
        return wrap_handler(await continuation(handler_call_details), lambda context: self._counted())

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._num_rpcs += 1
        try:
            yield
        finally:
            self._num_rpcs -= 1
            self._last_active = time.monotonic()
