"""A short, seeded part of the chaos suite; `make chaos` runs as many schedules as one likes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos.campaign import Totals, run_world

# Among them: backend, trainer and worker killed, frozen, cut off, a full disk, retries from a checkpoint.
SEEDS = (3, 4, 13)


async def test_short_chaos_breaks_no_invariant(tmp_path: Path) -> None:
    totals = Totals()
    assert await run_world(SEEDS, tmp_path, totals), f"see the problems above and the logs in {tmp_path}"
    assert totals.num_passed == len(SEEDS)
    assert totals.states.total() >= 4 * len(SEEDS)
    assert os.listdir(tmp_path) == []
