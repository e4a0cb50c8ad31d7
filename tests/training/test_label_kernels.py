from __future__ import annotations

import numpy as np

from ktrdr_core.labels.zigzag_segments import MIN_COMPILED_BARS, find_extremes


def test_the_compiled_zigzag_gives_the_extremes_of_the_one_in_python() -> None:
    rng = np.random.default_rng(5)
    steps = rng.normal(0, 0.004, MIN_COMPILED_BARS) * (rng.random(MIN_COMPILED_BARS) < 0.9)  # with ties
    close = np.exp(np.cumsum(steps))
    head = close[: MIN_COMPILED_BARS - 1]
    compiled, plain = find_extremes(close, 0.01), find_extremes(head, 0.01)
    num_same = int(np.searchsorted(compiled[1], len(head)))  # confirmed by bars that both have
    assert num_same == len(plain[0]) > 1_000
    for one, other in zip(compiled[:2], plain[:2], strict=True):
        np.testing.assert_array_equal(one[:num_same], other)
    assert compiled[2] == plain[2]
