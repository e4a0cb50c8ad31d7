"""Settings of the whole suite."""

from __future__ import annotations

import gc
import os

from hypothesis import settings

# `make test` runs the thorough profile; the targets one types while working run the quick one.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_finish() -> None:
    """Take what is loaded by now out of the collector's sight: it lives to the end, and walking it costs time."""
    gc.collect()
    gc.freeze()
