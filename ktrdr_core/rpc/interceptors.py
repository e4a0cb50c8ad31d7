"""The one place where an exception of a handler becomes a gRPC status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio

from ktrdr_core.errors import InternalError, KtrdrError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.errors import INTERNAL_MESSAGE, to_status
from ktrdr_core.rpc.handlers import wrap_handler

_log = get_logger(__name__)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers every `KtrdrError` as its status, every other exception as INTERNAL with its text in the log only.

    Cancellation passes through untouched.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        return wrap_handler(await continuation(handler_call_details), lambda context: _mapping_errors(context, method))


@asynccontextmanager
async def _mapping_errors(context: grpc.aio.ServicerContext[Any, Any], method: str) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001  the edge of the service: nothing may pass unmapped
        await _abort(context, error, method)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> NoReturn:
    if isinstance(error, KtrdrError):
        if isinstance(error, InternalError):
            _log.error("%s failed: %s", method, error.message, exc_info=error)
        else:
            _log.debug("%s refused: %s %s", method, error.reason, error.message)
        status = to_status(error)
    else:
        _log.error("%s raised %s", method, type(error).__name__, exc_info=error)
        status = to_status(InternalError(INTERNAL_MESSAGE))
    await context.abort_with_status(status)
    raise AssertionError("abort_with_status always raises")  # for the type checker
