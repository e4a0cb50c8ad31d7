"""An evaluation goes through its message unchanged, and the message knows every key of the domain."""

from __future__ import annotations

import typing

import pytest
from google.protobuf.descriptor import Descriptor
from ktrdr.training.v1 import evaluation_pb2

from ktrdr_core.domain import result
from ktrdr_core.wire.evaluation import evaluation_from_proto, evaluation_to_proto
from tests.kit.evaluations import make_evaluation

SAME_NAME = (
    "Evaluation",
    "ClassMetrics",
    "Calibration",
    "CalibrationBin",
    "Baselines",
    "SignalEvaluation",
    "RegressionMetrics",
    "ImportanceInterval",
    "GroupImportance",
    "FoldMetrics",
    "LeakageVerdict",
    "RowReport",
)


@pytest.mark.parametrize("is_regression", [False, True])
@pytest.mark.parametrize("with_folds", [False, True])
def test_evaluation_goes_through_its_message_unchanged(is_regression: bool, with_folds: bool) -> None:
    evaluation = make_evaluation(is_regression=is_regression, with_folds=with_folds)
    sent = evaluation_to_proto(evaluation).SerializeToString()
    assert evaluation_from_proto(evaluation_pb2.Evaluation.FromString(sent)) == evaluation


def test_zeros_come_back_as_zeros() -> None:
    evaluation = make_evaluation()
    evaluation["mcc"] = 0.0
    evaluation["signals"]["num_trades"] = 0
    evaluation["leakage"]["purged_rows"] = 0
    assert evaluation_from_proto(evaluation_to_proto(evaluation)) == evaluation


@pytest.mark.parametrize("name", SAME_NAME)
def test_message_has_the_keys_of_the_domain(name: str) -> None:
    descriptor: Descriptor = getattr(evaluation_pb2, name).DESCRIPTOR
    assert {field.name for field in descriptor.fields} == set(typing.get_type_hints(getattr(result, name)))


def test_section_that_a_service_leaves_unset_comes_as_zeros() -> None:
    message = evaluation_to_proto(make_evaluation())
    message.ClearField("rows")
    assert set(evaluation_from_proto(message)["rows"].values()) == {0}
