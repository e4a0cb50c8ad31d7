"""What a token allows."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from ktrdr_core.errors import InvalidInputError


class Scope(StrEnum):
    """READ looks; TRAIN adds, and changes what can be changed back; ADMIN removes for good and steers the services.

    TRAINER is how the services call each other.
    """

    READ = "read"
    TRAIN = "train"
    TRAINER = "trainer"
    ADMIN = "admin"


_INCLUDED: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.TRAIN: frozenset({Scope.TRAIN, Scope.READ}),
    Scope.TRAINER: frozenset({Scope.TRAINER}),
    Scope.ADMIN: frozenset(Scope),
}


def with_included(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return the scopes and all that they include."""
    return frozenset().union(*(_INCLUDED[scope] for scope in scopes))


def parse_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes of a comma-separated list.

    Raises:
        InvalidInputError: It is empty, or one is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Scope)]
    if unknown or not names:
        raise InvalidInputError(f"scopes are some of {', '.join(Scope)}, comma-separated; was {text!r}", field="scopes")
    return frozenset(map(Scope, names))
