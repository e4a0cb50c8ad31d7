"""A trainer has one name for all its life."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from ktrdr_core.errors import CorruptDataError
from trainer_service.identity import load_trainer_id


def test_it_is_made_once(tmp_path: Path) -> None:
    first = load_trainer_id(tmp_path / "trainer")

    assert str(UUID(first)) == first
    assert load_trainer_id(tmp_path / "trainer") == first
    assert load_trainer_id(tmp_path / "other") != first


@pytest.mark.parametrize("text", [b"", b"rubbish", b"\xff\xfe"])
def test_what_is_none_is_refused_rather_than_replaced(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "trainer_id").write_bytes(text)

    with pytest.raises(CorruptDataError, match="remove it"):
        load_trainer_id(tmp_path)

    assert (tmp_path / "trainer_id").read_bytes() == text
