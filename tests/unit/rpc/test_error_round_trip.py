"""An error that crosses the wire comes back as itself."""

from __future__ import annotations

import gc

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.errors import (
    CancellationError,
    CorruptDataError,
    FieldViolation,
    InternalError,
    InvalidInputError,
    InvalidSpecError,
    KtrdrError,
    NoSlotError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnreachableError,
    error_classes,
)
from ktrdr_core.rpc.errors import from_rpc_error, to_status


def crossed(error: KtrdrError) -> KtrdrError:
    status = to_status(error)
    trailers = grpc.aio.Metadata.from_tuple(status.trailing_metadata)
    return from_rpc_error(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, details=status.details))


def bare(code: grpc.StatusCode, details: str = "text") -> KtrdrError:
    return from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details))


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_every_class_comes_back_as_itself(cls: type[KtrdrError]) -> None:
    sent = cls("what went wrong")
    sent.metadata["training_id"] = "5f0c"

    back = crossed(sent)

    assert type(back) is cls
    assert (back.message, back.metadata) == ("what went wrong", {"training_id": "5f0c"})


def test_violations_come_back() -> None:
    violations = (FieldViolation("spec.epochs", "at least 1"), FieldViolation("indicators[0].period", "at least 2"))

    back = crossed(InvalidSpecError("two rules are broken", violations=violations))

    assert isinstance(back, InvalidInputError)
    assert back.violations == violations


def test_retry_delay_comes_back() -> None:
    back = crossed(NoSlotError("full", retry_after_s=2.5))

    assert isinstance(back, NoSlotError)
    assert back.retry_after_s == 2.5


def test_reason_of_a_cancellation_comes_back() -> None:
    back = crossed(CancellationError("user pressed Ctrl-C"))

    assert isinstance(back, CancellationError)
    assert back.reason_text == "user pressed Ctrl-C"


@given(
    message=st.text(max_size=20_000),
    violations=st.lists(st.tuples(st.text(max_size=500), st.text(max_size=3_000)), max_size=50),
    metadata=st.dictionaries(st.text(max_size=100), st.text(max_size=2_000), max_size=5),
)
def test_trailers_stay_below_the_8_kb_every_peer_takes(
    message: str, violations: list[tuple[str, str]], metadata: dict[str, str]
) -> None:
    error = InvalidSpecError(message, violations=[FieldViolation(*pair) for pair in violations], metadata=metadata)

    status = to_status(error)

    details = dict(status.trailing_metadata)["grpc-status-details-bin"]
    assert len(details) * 4 / 3 + 3 * len(status.details.encode()) < 16_000
    assert type(crossed(error)) is InvalidSpecError


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnavailableError),
        (grpc.StatusCode.DATA_LOSS, CorruptDataError),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
    ],
)
def test_a_status_of_grpc_itself_becomes_the_nearest_class(code: grpc.StatusCode, cls: type[KtrdrError]) -> None:
    assert type(bare(code)) is cls


def test_unreachable_says_what_to_check() -> None:
    assert "check its address" in bare(grpc.StatusCode.UNAVAILABLE, "connection refused").message


def test_details_that_are_no_status_are_ignored() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))

    error = from_rpc_error(
        grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailers, details="gone")
    )

    assert error.message == "gone"


def test_a_reason_of_a_newer_peer_falls_back_to_the_status() -> None:
    newer = type("NewerError", (InvalidInputError,), {"reason": "FROM_THE_FUTURE"})
    status = to_status(newer("rule of tomorrow"))
    del newer  # a class the receiver does not know
    gc.collect()  # a class is a cycle
    trailers = grpc.aio.Metadata.from_tuple(
        tuple(
            (key, value.replace(b"FUTURE", b"FUTURX"))
            for key, value in status.trailing_metadata
            if isinstance(value, bytes)
        )
    )

    back = from_rpc_error(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, details=status.details))

    assert type(back) is InvalidInputError
    assert back.metadata["reason"] == "FROM_THE_FUTURX"
