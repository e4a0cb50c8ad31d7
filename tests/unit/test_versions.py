"""Backend and trainer work together if their MAJOR.MINOR are equal."""

from __future__ import annotations

from importlib import metadata

import pytest

from ktrdr_core.errors import VersionSkewError
from ktrdr_core.versions import check_versions, own_version


@pytest.mark.parametrize(
    ("backend", "trainer"), [("0.1.0", "0.1.0"), ("0.1.0", "0.1.7"), ("0.1", "0.1.0"), ("1.2.3", "1.2.0.dev1")]
)
def test_the_patch_may_differ(backend: str, trainer: str) -> None:
    check_versions(backend=backend, trainer=trainer)


@pytest.mark.parametrize(
    ("backend", "trainer"), [("0.1.0", "0.2.0"), ("1.1.0", "0.1.0"), ("0.1.0", "0.10.0"), ("0.1.0", ""), ("", "0.1.0")]
)
def test_other_differences_are_refused_and_both_versions_named(backend: str, trainer: str) -> None:
    with pytest.raises(VersionSkewError) as caught:
        check_versions(backend=backend, trainer=trainer)

    assert caught.value.metadata == {"backend_version": backend, "trainer_version": trainer}
    assert f"trainer {trainer or 'of unknown version'} and backend {backend or 'of unknown version'}" in str(
        caught.value
    )


def test_this_installation_knows_its_version() -> None:
    assert own_version() == metadata.version("ktrdr")
