"""The class order, decided once."""

from __future__ import annotations

from enum import IntEnum


class SignalClass(IntEnum):
    """Class index of a label, a logit and a probability column."""

    BUY = 0
    HOLD = 1
    SELL = 2


NUM_CLASSES = len(SignalClass)
CLASS_NAMES: tuple[str, ...] = tuple(member.name for member in SignalClass)
