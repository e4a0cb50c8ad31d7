"""The bars of an attempt: what they are when it begins, and whether they are those of the attempts before."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ktrdr.data.v1.series_pb2 import Series

from backend_service.operations.records import SessionRow
from backend_service.operations.training_record import TrainingRecord
from ktrdr_core.data.partitions import time_bounds
from ktrdr_core.domain.progress import BARS_CHANGED
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.errors import SeriesNotFoundError
from ktrdr_core.training.preflight import prepare_strategy


class SeriesSource(Protocol):
    """The backend's bars as parts."""

    async def series(self, symbol: str, timeframe: str) -> Series:
        """Return a series with its parts as it is now.

        Raises:
            SeriesNotFoundError: There is no such series.
            InvalidBarsError: Its bars break a rule of the data.
            UnavailableError: They cannot be read now.
        """


class AttemptBars:
    """Names the bars that attempts read.

    Args:
        source: The backend's bars.
    """

    def __init__(self, source: SeriesSource) -> None:
        self._source = source

    async def snapshot(self, spec: TrainingSpec) -> tuple[Series, ...]:
        """Return the series a training reads, as they are now: each that the backend has of its symbols and timeframes.

        Higher timeframes that it has not are made of the base timeframe, here as there. Empty if it reads other bars.

        Raises:
            InvalidInputError: The strategy breaks a rule, or its bars do.
            SeriesNotFoundError: The base timeframe of a symbol is not there.
        """
        if spec.data_mode is not DataMode.BACKEND:
            return ()
        strategy, _ = await asyncio.to_thread(prepare_strategy, spec)
        found = []
        for symbol in strategy.symbols:
            found.append(await self._source.series(symbol, strategy.base_timeframe))
            for timeframe in strategy.higher_timeframes:
                try:
                    found.append(await self._source.series(symbol, timeframe))
                except SeriesNotFoundError:
                    continue
        return tuple(found)

    async def note(self, record: TrainingRecord, session: SessionRow, series: Sequence[Series]) -> SessionRow:
        """Remember with an attempt which bars it reads, and warn if they are not those of the attempts before.

        Whether its checkpoint still fits is decided where it is gone on from: by the rows it was taken from.
        """
        bars = tuple(digest_in_range(each, record.row.spec) for each in series)
        if bars == session.bars:
            return session
        before = next((each for each in record.sessions if each.bars and each.attempt < session.attempt), None)
        session = replace(session, bars=bars)
        await record.put_session(session)
        if before is None:
            return session
        known = dict(before.bars)
        changed = [name for name, digest in bars if known.get(name) != digest]
        changed += [name for name in known if name not in dict(bars)]
        if changed:
            await record.warn(
                BARS_CHANGED,
                f"the bars of {', '.join(changed)} are no longer those of attempt {before.attempt}; attempt"
                f" {session.attempt} trains on the new ones, and begins at the beginning where they change its rows",
            )
        return session


def digest_in_range(series: Series, spec: TrainingSpec) -> tuple[str, str]:
    """Return the name of a series, and a digest of its parts that have bars between the days of a training."""
    first_ns, last_ns = time_bounds(spec.start_date, spec.end_date)
    digest = hashlib.sha256()
    for part in series.parts:
        if part.start_time.ToNanoseconds() <= last_ns and part.end_time.ToNanoseconds() >= first_ns:
            digest.update(part.sha256)
    return f"{series.symbol} {series.timeframe}", digest.hexdigest()
