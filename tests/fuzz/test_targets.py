"""Every target, with its seeds and with what hypothesis makes of them; `make fuzz` goes on with coverage."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.campaign import corpus_of
from tests.fuzz.mutations import hostile
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

EXAMPLES = {"upload": 60, "artifact": 60, "names": 40, "bars_file": 100}
"""Of targets whose inputs take many milliseconds each."""

MAX_SEEDS = 150

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@each_target
def test_seeds_and_corpus_break_nothing(target: Target, tmp_path: Path) -> None:
    probe = target.build(tmp_path)
    seeds = target.seeds()
    for data in (*seeds[:: 1 + len(seeds) // MAX_SEEDS], *corpus_of(target.name)):
        probe(data)


@each_target
def test_hostile_bytes_break_nothing(target: Target) -> None:
    seeds = [*target.seeds(), *corpus_of(target.name)]
    share = settings().max_examples / settings.get_profile("thorough").max_examples
    examples = max(20, int(share * EXAMPLES.get(target.name, 400)))

    with TemporaryDirectory(prefix="ktrdr-fuzz-") as name:
        probe = target.build(Path(name))

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
        @given(data=st.deferred(lambda: hostile(seeds)))
        def run(data: bytes) -> None:
            probe(data)

        run()
