"""Warming an engine up beside the start of a service."""

from __future__ import annotations

import time

from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.engine import ExecutionEngine
from ktrdr_core.logging import get_logger

_log = get_logger(__name__)


async def warm_up_or_log(engine: ExecutionEngine) -> None:
    """Warm the engine up; a failure is logged and left to the first session, which meets it again and says so."""
    begin_s = time.monotonic()
    try:
        await engine.warm_up()
    except KtrdrError as error:
        _log.error("Trainings may fail or start slowly here: %s", error.message)
    else:
        _log.info("Warm after %.1f s: the first training starts as fast as the others", time.monotonic() - begin_s)
