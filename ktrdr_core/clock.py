"""The one source of wall-clock time, always UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time, timezone-aware, UTC."""
    return datetime.now(UTC)


def to_iso(time: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds, for example `2017-01-01T22:00:00.000000Z`."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_iso(text: str) -> datetime:
    """Return the aware datetime that `to_iso` wrote."""
    return datetime.fromisoformat(text)
