"""Bars of one symbol at every timeframe of a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktrdr_core.data.alignment import num_closed
from ktrdr_core.data.bars import Bars


@dataclass(frozen=True, eq=False)
class SymbolBars:
    """Bars of one symbol: those a row is made of, and longer ones.

    Attributes:
        base: Bars of the base timeframe; a row is one of them.
        higher: Bars of each longer timeframe, shortest first; a base bar sees the last of them that has closed.
    """

    base: Bars
    higher: tuple[Bars, ...] = ()

    @property
    def symbol(self) -> str:
        return self.base.symbol

    @property
    def timeframes(self) -> tuple[str, ...]:
        return (self.base.timeframe, *(bars.timeframe for bars in self.higher))

    def __len__(self) -> int:
        return len(self.base)

    def at(self, timeframe: str) -> Bars:
        """Return the bars of one of `timeframes`; KeyError for another."""
        for bars in (self.base, *self.higher):
            if bars.timeframe == timeframe:
                return bars
        raise KeyError(timeframe)

    def head(self, n: int) -> SymbolBars:
        """Return what is known at the close of base bar `n` - 1: the first `n` bars and the longer bars closed then."""
        return self.window(0, n)

    def window(self, start: int, stop: int, history: Sequence[int] | None = None) -> SymbolBars:
        """Return base bars `start` to `stop` - 1 and the longer bars closed by the last of them; no copy.

        Args:
            start: First base bar.
            stop: Base bar after the last.
            history: For each of `higher`, how many of the bars closed before base bar `start` are kept; None is all.
        """
        base = self.base.rows(slice(start, stop))
        kept = []
        for index, bars in enumerate(self.higher):
            first = 0 if history is None else max(num_closed(bars, self.base, start) - history[index], 0)
            kept.append(bars.rows(slice(first, num_closed(bars, self.base, stop))))
        return SymbolBars(base, tuple(kept))
