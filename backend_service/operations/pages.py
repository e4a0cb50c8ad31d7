"""Pages of lists: their size, their tokens, what fits into a message."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from backend_service.operations.records import TrainingRow
from ktrdr_core.errors import InvalidInputError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 << 20  # gRPC refuses messages above 4 MiB; the sizes below are generous guesses
ROW_BYTES = 2_000
FEATURE_BYTES = 120
_MAX_POSITION = 2**63 - 1  # it becomes a parameter of SQL


def num_that_fit(rows: Sequence[TrainingRow]) -> int:
    """Return how many trainings a page may have to stay below the limit of a message; at least one."""
    size = 0
    for number, row in enumerate(rows):
        features = len(row.result["feature_names"]) if row.result else 0
        size += len(row.spec.strategy_yaml.encode()) + features * FEATURE_BYTES + ROW_BYTES
        if size > MAX_PAGE_BYTES:
            return max(number, 1)
    return len(rows)


def check_page_size(page_size: int, *, default: int = DEFAULT_PAGE_SIZE) -> int:
    """Return the page size to use; 0 means `default`.

    Raises:
        InvalidInputError: It is not in 0 to MAX_PAGE_SIZE.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidInputError(f"page_size must be 1 to {MAX_PAGE_SIZE}, was {page_size}", field="page_size")
    return page_size or default


def encode_page_token(position: int) -> str:
    """Return an opaque token for "after this position"."""
    return base64.urlsafe_b64encode(f"p{position}".encode()).decode()


def decode_page_token(token: str) -> int:
    """Return the position in a token.

    Raises:
        InvalidInputError: This program did not make the token.
    """
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        if text[:1] != "p" or not text[1:].isdecimal() or (position := int(text[1:])) > _MAX_POSITION:
            raise ValueError(text)
    except (binascii.Error, ValueError):
        raise InvalidInputError(
            f"page_token {token[:80]!r} was not made by this service; take it from the page before", field="page_token"
        ) from None
    return position
