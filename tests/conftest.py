"""Settings of the whole suite."""

from __future__ import annotations

import gc
import os

from hypothesis import HealthCheck, settings

# `make test` runs the thorough profile; the targets one types while working run the quick one. Both take the same
# examples each time, so that a change is what turns a test red; `explore` takes new ones, for hunting. None asks how
# long an example takes: that is a question about the machine.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _PATIENT, max_examples=5, derandomize=True)
settings.register_profile("thorough", _PATIENT, max_examples=100, derandomize=True)
settings.register_profile("explore", _PATIENT, max_examples=1_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_finish() -> None:
    """Take what is loaded by now out of the collector's sight: it lives to the end, and walking it costs time."""
    gc.collect()
    gc.freeze()
