"""The one place where an exception of a handler becomes a gRPC status."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from ktrdr_core.errors import InternalError, KtrdrError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.errors import INTERNAL_MESSAGE, to_status

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
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method; grpc answers UNIMPLEMENTED
            return handler
        found: Any = handler
        method = handler_call_details.method
        for kind, make in _MAKERS.items():
            behaviour = getattr(found, kind)
            if behaviour is not None:
                made: grpc.RpcMethodHandler[Any, Any] = make(
                    _wrapped(behaviour, method),
                    request_deserializer=found.request_deserializer,
                    response_serializer=found.response_serializer,
                )
                return made
        return handler


_MAKERS: dict[str, Callable[..., Any]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


def _wrapped(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  the edge of the service: nothing may pass unmapped
                await _abort(context, error, method)

        return stream

    async def call(request: Any, context: Any) -> Any:
        try:
            answer = behaviour(request, context)
            return await answer if inspect.isawaitable(answer) else answer
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  the edge of the service: nothing may pass unmapped
            await _abort(context, error, method)

    return call


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
