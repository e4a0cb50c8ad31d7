from __future__ import annotations

import pytest

from ktrdr_core.config.naming import check_name, is_name
from ktrdr_core.errors import InvalidSpecError, InvalidStrategyError


@pytest.mark.parametrize("name", ["EURUSD", "neuro_mean_reversion", "1h", "BTC-USD", "BRK.B", "a" * 128])
def test_ordinary_names_are_accepted(name: str) -> None:
    assert check_name(name, field="name", what="name") == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "../../x", "a/b", "/etc", "a\\b", "a..b", ".hidden", "-x", "a b", "a\nb", "a\x00", "a" * 129, "é", 3],
)
def test_paths_and_control_characters_are_no_names(name: object) -> None:
    assert not is_name(name)
    with pytest.raises(InvalidStrategyError, match="symbol must be 1 to 128") as caught:
        check_name(name, field="training_data.symbols.symbol", what="symbol")
    assert caught.value.violations[0].field == "training_data.symbols.symbol"


def test_caller_chooses_the_error_class() -> None:
    with pytest.raises(InvalidSpecError):
        check_name("../x", field="spec.symbols[0]", what="symbol", error_class=InvalidSpecError)
