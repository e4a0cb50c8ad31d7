"""The evaluation of a model, to its message and back.

The fields of the message carry the names of the domain's keys, so protobuf's own JSON mapping does the work; a test
proves that they stay the same.
"""

from __future__ import annotations

from typing import Any, cast

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from ktrdr.training.v1 import evaluation_pb2

from ktrdr_core.domain.result import Evaluation


def evaluation_to_proto(evaluation: Evaluation) -> evaluation_pb2.Evaluation:
    """Return the message of an evaluation."""
    raw: dict[str, Any] = {**evaluation}
    raw["confusion_matrix"] = [{"counts": counts} for counts in evaluation["confusion_matrix"]]
    if evaluation["regression"] is None:
        del raw["regression"]
    return ParseDict(raw, evaluation_pb2.Evaluation())


def evaluation_from_proto(message: evaluation_pb2.Evaluation) -> Evaluation:
    """Return the evaluation of a message."""
    raw = _to_dict(message)
    raw["confusion_matrix"] = [list(row.counts) for row in message.confusion_matrix]
    raw.setdefault("regression", None)
    for section in ("calibration", "baselines", "signals", "leakage", "rows"):
        raw[section] = _to_dict(getattr(message, section))  # zeros where a service older than a section leaves it unset
    for fold in raw["folds"]:
        fold["seed"] = int(fold["seed"])  # JSON has no 64-bit numbers, so protobuf writes them as text
    return cast(Evaluation, raw)


def _to_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
