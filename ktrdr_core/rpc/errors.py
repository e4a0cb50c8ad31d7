"""Errors over the wire: `KtrdrError` to a gRPC status with details, and back to the same class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ktrdr_core.errors import (
    CancellationError,
    FieldViolation,
    InternalError,
    InvalidInputError,
    KtrdrError,
    NoSlotError,
    error_classes,
)
from ktrdr_core.rpc.status_table import CLASS_BY_STATUS, status_of

DOMAIN = "ktrdr"
INTERNAL_MESSAGE = "the service failed in an unexpected way; its log has the details"

# Peers drop trailers above 8 kB, at the latest above 16 kB; the message travels twice and grows by a third as base64.
_MAX_MESSAGE_CHARS = 1_200
_MAX_VIOLATIONS_CHARS = 1_500
_MAX_METADATA_CHARS = 600
_DETAILS_KEY = "grpc-status-details-bin"


def to_status(error: KtrdrError) -> grpc.Status:
    """Return the gRPC status of an error: `ErrorInfo`, and `BadRequest` or `RetryInfo` where the class has them."""
    message = _shortened(error.message, _MAX_MESSAGE_CHARS)
    status = status_pb2.Status(code=status_of(error).value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    room = _MAX_METADATA_CHARS
    for key, value in error.metadata.items():
        if len(key) + len(value) <= room:
            info.metadata[key] = value
            room -= len(key) + len(value)
    _attach(status, info)
    if isinstance(error, InvalidInputError) and error.violations:
        _attach(status, _bad_request(error.violations))
    if isinstance(error, NoSlotError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(max(error.retry_after_s, 0.0) * 1000))
        _attach(status, retry)
    found: grpc.Status = rpc_status.to_status(status)
    return found


def from_rpc_error(error: grpc.RpcError | grpc.aio.AioRpcError) -> KtrdrError:
    """Return the error the other side raised, as the same class; without an `ErrorInfo`, the nearest by status code.

    Args:
        error: What a stub raised; both flavours of grpc are understood.
    """
    call: Any = error
    code: grpc.StatusCode = call.code() if hasattr(call, "code") else grpc.StatusCode.UNKNOWN
    text: str = (call.details() if hasattr(call, "details") else None) or str(code.name)
    trailers = call.trailing_metadata() if hasattr(call, "trailing_metadata") else None
    status = _status_in(trailers or ())
    info, violations, retry_after_s = _details_of(status)
    if info is None:
        return _without_info(code, text)
    message = status.message or text
    metadata = dict(info.metadata)
    cls = error_classes().get(info.reason)
    if cls is None:  # a newer peer
        cls = CLASS_BY_STATUS.get(code, InternalError)
        metadata.setdefault("reason", info.reason)
    return _build(cls, message, metadata, violations, retry_after_s)


def _build(
    cls: type[KtrdrError],
    message: str,
    metadata: dict[str, str],
    violations: tuple[FieldViolation, ...],
    retry_after_s: float | None,
) -> KtrdrError:
    if issubclass(cls, CancellationError):
        cancelled = cls(message)
        cancelled.metadata.update(metadata)
        return cancelled
    if issubclass(cls, InvalidInputError):
        return cls(message, violations=violations, metadata=metadata)
    if issubclass(cls, NoSlotError) and retry_after_s is not None:
        return cls(message, retry_after_s=retry_after_s, metadata=metadata)
    return cls(message, metadata=metadata)


def _without_info(code: grpc.StatusCode, text: str) -> KtrdrError:
    cls = CLASS_BY_STATUS.get(code)
    if cls is None:
        return InternalError(f"the other side answered {code.name}: {text}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return cls(f"the other side cannot be reached ({text}); check its address and that it runs")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return cls(f"the other side did not answer in time ({text}); try again")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return cls(f"the other side does not know this call ({text}); check that both sides have the same version")
    return cls(text)


def _attach(status: Any, detail: Message) -> None:
    status.details.add().Pack(detail)


def _bad_request(violations: Iterable[FieldViolation]) -> Message:
    bad_request = error_details_pb2.BadRequest()
    room = _MAX_VIOLATIONS_CHARS
    for violation in violations:
        description = _shortened(violation.description, min(room, 400))
        field = _shortened(violation.field, 200)
        room -= len(field) + len(description)
        if room < 0:
            break
        bad_request.field_violations.add(field=field, description=description)
    message: Message = bad_request
    return message


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def _status_in(trailers: Iterable[tuple[str, str | bytes]]) -> Any:
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _details_of(status: Any) -> tuple[Any, tuple[FieldViolation, ...], float | None]:
    info = None
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found = error_details_pb2.ErrorInfo.FromString(detail.value)
            info = found if found.domain == DOMAIN else info
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(detail.value)
            violations = tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo.FromString(detail.value)
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return info, violations, retry_after_s
