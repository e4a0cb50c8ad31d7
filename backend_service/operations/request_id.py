"""What an idempotency key may look like."""

from __future__ import annotations

from ktrdr_core.errors import InvalidInputError

MAX_REQUEST_ID_LENGTH = 128


def check_request_id(request_id: str) -> None:
    """Raise unless a key is short and printable; "" is none.

    Raises:
        InvalidInputError: It is too long, or has control characters.
    """
    if len(request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidInputError(
            f"request_id must have at most {MAX_REQUEST_ID_LENGTH} characters, had {len(request_id)}",
            field="request_id",
        )
    if not request_id.isprintable():
        raise InvalidInputError(
            f"request_id must have printable characters only, was {request_id!r}", field="request_id"
        )
