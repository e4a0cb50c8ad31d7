"""Which versions of backend and trainer work together."""

from __future__ import annotations

from importlib import metadata

from ktrdr_core.errors import VersionSkewError

_DISTRIBUTION = "ktrdr"


def own_version() -> str:
    """Return the version of this installation; "" if it runs without one."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""


def check_versions(*, backend: str, trainer: str) -> None:
    """Do nothing if the two work together: their MAJOR.MINOR are equal.

    Args:
        backend: Version of the backend, for example "0.1.3".
        trainer: Version of the trainer.

    Raises:
        VersionSkewError: They differ; its metadata has both versions.
    """
    if _major_minor(backend) == _major_minor(trainer):
        return
    raise VersionSkewError(
        f"trainer {trainer or 'of unknown version'} and backend {backend or 'of unknown version'} do not work together,"
        " MAJOR.MINOR must be equal; install the same version of ktrdr on both",
        metadata={"backend_version": backend, "trainer_version": trainer},
    )


def _major_minor(version: str) -> list[str]:
    return version.split(".")[:2]
