"""Putting something around every call of a handler, whatever its kind."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Around: TypeAlias = "Callable[[grpc.aio.ServicerContext[Any, Any]], AbstractAsyncContextManager[None]]"

_MAKERS: dict[str, Callable[..., Any]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


def wrap_handler(handler: Handler | None, around: Around) -> Handler | None:
    """Return the handler with `around(context)` entered for as long as each call of it lasts.

    Args:
        handler: What the next interceptor answered; None, an unknown method, stays None and grpc says UNIMPLEMENTED.
        around: Makes the context manager of one call; it sees what the call raises, cancellation included.
    """
    found: Any = handler
    for kind, make in _MAKERS.items():
        behaviour = None if found is None else getattr(found, kind)
        if behaviour is not None:
            made: Handler = make(
                _wrapped(behaviour, around),
                request_deserializer=found.request_deserializer,
                response_serializer=found.response_serializer,
            )
            return made
    return handler


def _wrapped(behaviour: Callable[..., Any], around: Around) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):  # the other form of a stream writes to its context

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with around(context), aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return stream

    async def call(request: Any, context: Any) -> Any:
        async with around(context):
            answer = behaviour(request, context)
            return await answer if inspect.isawaitable(answer) else answer

    return call
