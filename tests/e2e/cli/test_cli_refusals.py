"""Every broken rule of a strategy, as the command tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.bad_strategies import BAD_STRATEGIES, BadStrategy
from tests.kit.cli import Ran

Here = Callable[..., Ran]
# As many bars as the strategies are written for: some are right for more of them.
RANGE = ("--start", "2017-01-02", "--end", "2017-02-03")


@pytest.mark.parametrize("bad", BAD_STRATEGIES, ids=lambda bad: bad.label)
def test_strategy_that_breaks_a_rule_is_one_sentence_its_path_and_code_2(
    here: Here, tmp_path: Path, bad: BadStrategy
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(bad.yaml)
    ran = here("train", str(path), "--json", *RANGE)
    assert ran.code == 2, ran.out + ran.err
    assert bad.text in ran.err
    assert ran.err.startswith("ktrdr: ")
    assert len(ran.err.splitlines()) == 1
    (line,) = ran.lines
    assert line["violations"][0]["field"] == bad.field
    checked = here("strategies", "validate", str(path))
    assert checked.code == (0 if bad.needs_bars else 2), checked.err
