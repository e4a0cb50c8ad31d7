"""Who makes the call that is being answered."""

from __future__ import annotations

from contextvars import ContextVar

from ktrdr_core.errors import PermissionDeniedError
from ktrdr_core.security.scopes import Scope
from ktrdr_core.security.tokens import TokenEntry

# Each call is a task of its own, so what is set in it is seen in it alone.
_caller: ContextVar[TokenEntry | None] = ContextVar("ktrdr_caller", default=None)


def set_caller(entry: TokenEntry) -> None:
    """Say whose call the current task answers."""
    _caller.set(entry)


def require_scope(scope: Scope, what: str) -> None:
    """Let the caller go on if its token has a scope; everybody may where a service has no tokens.

    Args:
        scope: What is needed.
        what: What it is needed for, as the refusal tells it.

    Raises:
        PermissionDeniedError: It has not.
    """
    caller = _caller.get()
    if caller is not None and scope not in caller.allowed:
        raise missing_scope(caller, frozenset({scope}), what)


def user_of_caller(asked: str) -> str:
    """Return the user that a training belongs to.

    Args:
        asked: Whom the request names; "" for nobody.

    Returns:
        The name of the caller's token; `asked` for an admin who names somebody, and where a service has no tokens.

    Raises:
        PermissionDeniedError: The request names another user, and the caller is no admin.
    """
    caller = _caller.get()
    if caller is None or (asked and Scope.ADMIN in caller.allowed):
        return asked
    if asked not in ("", caller.name):
        raise PermissionDeniedError(
            f"the token of {caller.name} starts trainings of {caller.name}, not of {asked}; leave the user out, or ask "
            "an admin"
        )
    return caller.name


def missing_scope(caller: TokenEntry, needed: frozenset[Scope], what: str) -> PermissionDeniedError:
    """Return the refusal of a caller whose token does not allow `what`."""
    has, wants = (", ".join(sorted(scopes)) for scopes in (caller.scopes, needed))
    return PermissionDeniedError(
        f"the token of {caller.name} has the scope {has or 'of nothing'}, {what} needs {wants.replace(', ', ' or ')}; "
        "ask whoever runs the service for such a token",
        metadata={"token": caller.name, "needed_scopes": wants},
    )
