"""Numbers, times and sizes as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def duration(seconds: float | None) -> str:
    """Return `0:07`, `12:05` or `1:02:03`; `-` while unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def percent(fraction: float) -> str:
    """Return `61.2 %`."""
    return f"{fraction * 100:.1f} %"


def loss(value: float) -> str:
    """Return four digits after the point, or scientific where those would say nothing."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"


def rate(rows_per_second: float) -> str:
    """Return `14,230 rows/s`."""
    return f"{rows_per_second:,.0f} rows/s"


def size(size_bytes: float) -> str:
    """Return `812 B`, `4.1 KiB`, `1.2 MiB`, ..."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def moment(time: datetime | None) -> str:
    """Return `2026-11-22 06:33:10` in UTC; `-` if unset."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if time else "-"


def points(difference: float) -> str:
    """Return a difference of two fractions in percentage points with its sign: `+4.7 points`."""
    return f"{difference * 100:+.1f} points"
