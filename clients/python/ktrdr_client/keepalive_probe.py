"""Whether the way to a service lets an idle stream live: proxies, firewalls and servers with other limits cut it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ktrdr_core.errors import KtrdrError, UnavailableError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.errors import from_rpc_error

HOLD_S = 2.4
# Two pings within the time: every server tolerates two too early ones, ours and those with gRPC's default limits.
_PING_EVERY_MS = 1_000
_PING_TIMEOUT_MS = 1_000
_OPTIONS = {
    "grpc.keepalive_time_ms": _PING_EVERY_MS,
    "grpc.keepalive_timeout_ms": _PING_TIMEOUT_MS,
    "grpc.http2.ping_timeout_ms": _PING_TIMEOUT_MS,
    "grpc.use_local_subchannel_pool": 1,
}


async def probe_keepalive(address: str, *, hold_s: float = HOLD_S, security: ChannelSecurity | None = None) -> None:
    """Hold a health watch open with a ping each second, and return if it is still open after `hold_s`.

    Raises:
        KtrdrError: It was cut: by a GOAWAY, because pings were not answered, or because the stream ended.
    """
    channel = open_channel(address, security, options=_OPTIONS)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    call = stub.Watch(health_pb2.HealthCheckRequest())
    has_begun = False
    try:
        async with asyncio.timeout(hold_s):
            while await call.read() is not grpc.aio.EOF:
                has_begun = True
        raise UnavailableError("the idle stream was ended by the other side")
    except TimeoutError:
        if not has_begun:
            raise UnavailableError(f"the health watch did not answer within {hold_s:g} s") from None
    except grpc.RpcError as error:
        raise _explained(error) from None
    finally:
        call.cancel()
        await channel.close()


def _explained(error: grpc.RpcError) -> KtrdrError:
    problem = from_rpc_error(error)
    if "too many pings" in problem.message.lower():  # how gRPC words a GOAWAY of ENHANCE_YOUR_CALM
        return UnavailableError("sent away with GOAWAY too_many_pings")
    return problem
