"""The error tree: drawn in the docstring, complete, with unique reasons."""

from __future__ import annotations

import re

import pytest

from ktrdr_core import errors


def test_docstring_draws_every_class_of_the_tree() -> None:
    drawn = set(re.findall(r"\b([A-Z]\w+Error)\b", errors.__doc__ or "")) - {"KtrdrError"}
    assert drawn == {cls.__name__ for cls in errors.error_classes().values()}


def test_reasons_are_unique_and_upper_snake() -> None:
    found = errors.error_classes()
    defined = {
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.KtrdrError) and cls is not errors.KtrdrError
    }
    assert set(found.values()) == defined, "two classes share a reason"
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason) for reason in found)


def test_field_alone_becomes_a_violation() -> None:
    error = errors.InvalidSpecError("epochs must be at least 1, was 0", field="spec.epochs")
    assert error.violations == (errors.FieldViolation("spec.epochs", "epochs must be at least 1, was 0"),)
    with pytest.raises(ValueError, match="epochs"):
        raise error
