"""Every error has a status and a reason in the protos; nothing else has."""

from __future__ import annotations

import grpc
import pytest
from ktrdr.errors.v1 import error_reason_pb2

from ktrdr_core.errors import InvalidInputError, KtrdrError, NoSlotError, error_classes
from ktrdr_core.rpc.status_table import CLASS_BY_STATUS, STATUS_BY_CLASS, status_of


def own_classes() -> dict[str, type[KtrdrError]]:
    """Return the tree without classes that other tests have made."""
    return {reason: cls for reason, cls in error_classes().items() if cls.__module__ == KtrdrError.__module__}


def test_every_error_class_has_a_status_and_nothing_else_has() -> None:
    assert set(STATUS_BY_CLASS) == set(own_classes().values())


def test_reasons_and_the_proto_enum_match_one_to_one() -> None:
    names = [name for name, number in error_reason_pb2.ErrorReason.items() if number != 0]

    assert sorted(own_classes()) == sorted(name.removeprefix("ERROR_REASON_") for name in names)


def test_no_two_classes_share_a_reason() -> None:
    reasons = [cls.reason for cls in STATUS_BY_CLASS]

    assert len(set(reasons)) == len(reasons)


def test_a_class_outside_the_table_has_the_status_of_its_ancestor() -> None:
    local = type("LocalError", (InvalidInputError,), {"reason": "LOCAL"})

    assert status_of(local("x")) is grpc.StatusCode.INVALID_ARGUMENT
    assert status_of(KtrdrError("x")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("code", CLASS_BY_STATUS)
def test_the_way_back_without_details_ends_in_a_class_of_that_status(code: grpc.StatusCode) -> None:
    back = STATUS_BY_CLASS[CLASS_BY_STATUS[code]]

    lenient = {
        grpc.StatusCode.OUT_OF_RANGE: grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED: grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED: grpc.StatusCode.UNAVAILABLE,
    }
    assert back is lenient.get(code, code)
    assert CLASS_BY_STATUS[code] is not NoSlotError
