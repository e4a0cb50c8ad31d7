"""How every gRPC server of the project is made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as aio_health
from grpc_reflection.v1alpha import reflection

from ktrdr_core.errors import DrainingError, UnavailableError
from ktrdr_core.rpc.authentication import TokenInterceptor
from ktrdr_core.rpc.interceptors import ErrorInterceptor
from ktrdr_core.rpc.server_security import ServerSecurity

# Measured: without the first two, more than about 1,000 new streams at once are CANCELLED; without the ping interval,
# which must be below the clients' keepalive time, a client is sent away after its fourth ping. The server's own pings
# end the streams of clients that are gone within 8 s. There is no bound on calls here: it would refuse Cancel as well;
# what must be bounded is bounded where it costs something.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class HealthServicer(aio_health.HealthServicer):
    """Health of each service and, under "", of the whole; SERVING from the start until `enter_graceful_shutdown`."""

    def __init__(self, service_names: Iterable[str]) -> None:
        super().__init__()
        serving = health_pb2.HealthCheckResponse.SERVING
        self._server_status = {"": serving, **dict.fromkeys(service_names, serving)}
        self._watches: set[asyncio.Timeout] = set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802  the name of the RPC
        try:
            async with asyncio.timeout(None) as limit:
                self._watches.add(limit)
                try:
                    await super().Watch(request, context)
                finally:
                    self._watches.discard(limit)
        except TimeoutError:
            raise DrainingError("the service has stopped; watch again when it is back") from None

    def end_watches(self) -> None:
        """End the streams that watch, which never end by themselves: a stop of the server would sit its grace out."""
        now = asyncio.get_running_loop().time()
        for limit in self._watches:
            limit.reschedule(now)


def create_server(*outer: grpc.aio.ServerInterceptor, security: ServerSecurity | None = None) -> grpc.aio.Server:
    """Return a server with the measured options that maps errors; add services, `bind`, then start it.

    Args:
        outer: Further interceptors, around the one that maps errors.
        security: Whose tokens its callers must have; None lets everybody in.
    """
    tokens = None if security is None else security.tokens
    guards = [] if tokens is None else [TokenInterceptor(tokens)]
    return grpc.aio.server(interceptors=[*guards, *outer, ErrorInterceptor()], options=list(SERVER_OPTIONS))


def bind(server: grpc.aio.Server, address: str, security: ServerSecurity | None = None) -> int:
    """Listen on `host:port`, with TLS if `security` has it, and return the port; port 0 picks a free one.

    Raises:
        UnavailableError: The address is taken, or is none of this machine.
    """
    credentials = None if security is None else security.credentials
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {address}: it is taken or not an address here; choose another --host or --port"
        ) from error
    if port == 0:
        raise UnavailableError(f"cannot listen on {address}; choose another --host or --port")
    return port


def add_health_and_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> HealthServicer:
    """Add health (per service and overall, SERVING) and reflection for the full names of the server's services."""
    names = tuple(service_names)
    servicer = HealthServicer(names)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((*names, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
    return servicer
