"""What the grammar accepts of indicators: names, parameters, sources, and the names of their values."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.indicator_page import indicator_page
from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.naming import is_name
from ktrdr_core.config.signatures import SIGNATURES, canonical_indicator_name, indicator_signature, number_text
from ktrdr_core.errors import InvalidIndicatorError, InvalidStrategyError
from tests.kit.builders import REPOSITORY, strategy_dict

PLAN = """rsi macd sma ema wma bbands bollinger_band_width atr adx stoch williams_r cci roc momentum mfi obv vwap
    volume_ratio ad_line cmf aroon donchian keltner ichimoku parabolic_sar supertrend fisher rvi squeeze_intensity
    distance_from_ma"""


def test_every_indicator_of_the_plan_is_there() -> None:
    assert set(PLAN.split()) <= set(SIGNATURES)
    assert len(SIGNATURES) >= 30


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RSI", "rsi"),
        ("BollingerBands", "bbands"),
        ("bollinger-bands", "bbands"),
        ("Bollinger_Bands", "bbands"),
        ("BBANDS", "bbands"),
        ("BollingerBandWidth", "bollinger_band_width"),
        ("stochastic", "stoch"),
        ("WilliamsR", "williams_r"),
        ("Williams %R", "williams_r"),
        ("donchian_channels", "donchian"),
        ("DonchianChannels", "donchian"),
        ("keltner-channels", "keltner"),
        ("ParabolicSAR", "parabolic_sar"),
        ("SuperTrend", "supertrend"),
        ("ad", "ad_line"),
        ("ADLine", "ad_line"),
        ("Fisher-Transform", "fisher"),
        ("VolumeRatio", "volume_ratio"),
        ("DistanceFromMA", "distance_from_ma"),
    ],
)
def test_names_are_found_as_people_write_them(written: str, name: str) -> None:
    assert canonical_indicator_name(written) == name
    assert indicator_signature(written) is SIGNATURES[name]


def test_no_spelling_means_two_indicators() -> None:
    spellings = Counter(
        spelling
        for signature in SIGNATURES.values()
        for spelling in {re.sub(r"[^a-z0-9]", "", name) for name in (signature.name, *signature.aliases)}
    )
    assert [spelling for spelling, count in spellings.items() if count > 1] == []


def test_no_key_means_two_parameters_or_a_key_of_every_indicator() -> None:
    for signature in SIGNATURES.values():
        keys = [key for rule in signature.parameters for key in (rule.name, *rule.aliases)]
        assert len(keys) == len(set(keys)), signature.name
        assert not {"name", "feature_id", "source", "timeframes"} & set(keys), signature.name


def test_signatures_are_sound() -> None:
    for signature in SIGNATURES.values():
        defaults = signature.check({})
        assert is_name(signature.default_feature_id(defaults))
        assert signature.warm_up_bars(defaults) >= 0
        outputs = [output.name for output in signature.all_outputs]
        assert len(outputs) == len(set(outputs)), signature.name
        assert all((signature.title, signature.description, signature.reference, signature.flat))
        for rule in signature.parameters:
            assert rule.minimum <= rule.default <= rule.maximum, (signature.name, rule.name)
            assert isinstance(rule.minimum, int) == isinstance(rule.maximum, int) == rule.is_whole


@pytest.mark.parametrize("written", ["zigzag", "ZigZag", "zig_zag", "ZIG-ZAG"])
def test_zigzag_is_known_and_refused_because_it_repaints(written: str) -> None:
    with pytest.raises(InvalidIndicatorError, match=r"zigzag repaints.*source of labels.*not an indicator"):
        canonical_indicator_name(written)


@pytest.mark.parametrize(
    ("written", "hint"), [("rsj", "did you mean 'rsi'"), ("bolinger", "did you mean 'bollinger'"), ("%%%", "known: ")]
)
def test_unknown_indicator_is_refused_with_the_nearest(written: str, hint: str) -> None:
    with pytest.raises(InvalidIndicatorError, match=f"unknown indicator '{written}'; {hint}"):
        canonical_indicator_name(written)


@given(st.text(max_size=200))
def test_any_name_is_an_indicator_or_refused(written: str) -> None:
    refusal = ""
    try:
        assert canonical_indicator_name(written) in SIGNATURES
    except InvalidIndicatorError as error:
        refusal = error.message
    assert len(refusal) < 1_000


@pytest.mark.parametrize("key", ["period", "length", "timeperiod", "window"])
def test_period_has_the_names_people_write(key: str) -> None:
    for name in ("rsi", "sma", "atr", "cci", "donchian", "bbands"):
        assert SIGNATURES[name].check({key: 9})["period"] == 9


@pytest.mark.parametrize("key", ["num_std", "std_dev", "nbdev"])
def test_number_of_deviations_has_the_names_people_write(key: str) -> None:
    assert SIGNATURES["bbands"].check({key: 3}) == {"period": 20, "num_std": 3.0}


@pytest.mark.parametrize(
    ("name", "given", "field", "message"),
    [
        ("rsi", {"perod": 9}, "perod", "unknown parameter 'perod' of rsi; did you mean 'period'?"),
        ("obv", {"period": 9}, "period", "unknown parameter 'period' of obv, which takes none; remove it"),
        ("rsi", {"period": 9, "length": 9}, "length", "period and length are the same parameter of rsi; give one"),
        ("rsi", {"period": "9"}, "period", "period must be a whole number, was '9'"),
        ("rsi", {"period": 9.0}, "period", "period must be a whole number, was 9.0"),
        ("rsi", {"period": True}, "period", "period must be a whole number, was True"),
        ("rsi", {"period": None}, "period", "period must be a whole number, was None"),
        ("rsi", {"length": 1}, "length", "length must be at least 2 and at most 10000, was 1"),
        ("rsi", {"period": 10**30}, "period", f"period must be at least 2 and at most 10000, was {10**30}"),
        ("bbands", {"num_std": "2"}, "num_std", "num_std must be a number, was '2'"),
        ("bbands", {"std": False}, "std", "std must be a number, was False"),
        ("bbands", {"num_std": 0}, "num_std", "num_std must be at least 0.1 and at most 20, was 0"),
        ("bbands", {"num_std": float("nan")}, "num_std", "num_std must be at least 0.1 and at most 20, was nan"),
        ("bbands", {"num_std": float("inf")}, "num_std", "num_std must be at least 0.1 and at most 20, was inf"),
        ("macd", {"fast": 26}, "fast_period", "fast_period must be below slow_period (26), was 26"),
        ("parabolic_sar", {"step": 0.3}, "step", "step must not be above maximum (0.2), was 0.3"),
    ],
)
def test_wrong_parameter_is_refused_with_its_key_and_rule(
    name: str, given: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidIndicatorError) as caught:
        SIGNATURES[name].check(given)
    assert caught.value.message == message
    assert caught.value.violations[0].field == field


def test_step_may_be_its_maximum() -> None:
    assert SIGNATURES["parabolic_sar"].check({"step": 0.2})["step"] == 0.2


@pytest.mark.parametrize(
    ("name", "given", "source", "feature_id"),
    [
        ("rsi", {}, "close", "rsi_14"),
        ("rsi", {"period": 21}, "open", "rsi_21_open"),
        ("macd", {}, "close", "macd_12_26_9"),
        ("bbands", {}, "close", "bbands_20"),
        ("bbands", {"num_std": 2}, "close", "bbands_20"),
        ("bbands", {"num_std": 2.5}, "close", "bbands_20_2p5"),
        ("bbands", {"num_std": 3.0}, "hl2", "bbands_20_3_hl2"),
        ("keltner", {"multiplier": 1.5}, "close", "keltner_20_10_1p5"),
        ("parabolic_sar", {}, "close", "parabolic_sar"),
        ("parabolic_sar", {"step": 0.0001}, "close", "parabolic_sar_0p0001_0p2"),
        ("obv", {}, "close", "obv"),
    ],
)
def test_default_feature_id_has_no_superfluous_digits(
    name: str, given: dict[str, Any], source: str, feature_id: str
) -> None:
    signature = SIGNATURES[name]
    assert signature.default_feature_id(signature.check(given), source) == feature_id


@given(st.one_of(st.integers(-(10**12), 10**12), st.floats(0.0001, 100)))
def test_number_text_reads_back(value: float) -> None:
    text = number_text(value)
    assert float(text) == pytest.approx(value, abs=1e-10)
    assert "e" not in text


def _violation(indicator: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(InvalidStrategyError) as caught:
        strategy_from_dict(strategy_dict(**{"indicators.0": indicator}))
    violation = caught.value.violations[0]
    return violation.field, violation.description


@pytest.mark.parametrize(
    ("indicator", "field", "description"),
    [
        ({"name": "zigzag"}, "indicators[0].name", "zigzag repaints"),
        ({"name": "rsj"}, "indicators[0].name", "unknown indicator 'rsj'; did you mean 'rsi'?"),
        ({"name": "rsi", "length": 1}, "indicators[0].length", "length must be at least 2"),
        ({"name": "bbands", "nbdev": "two"}, "indicators[0].nbdev", "nbdev must be a number, was 'two'"),
        (
            {"name": "atr", "source": "open"},
            "indicators[0].source",
            "atr is computed of whole bars and takes no source",
        ),
        ({"name": "atr", "source": ["a"]}, "indicators[0].source", "atr is computed of whole bars"),
        ({"name": "sma", "source": "median"}, "indicators[0].source", "source must be 'open', 'high'"),
    ],
)
def test_strategy_names_the_path_of_what_is_wrong(indicator: dict[str, Any], field: str, description: str) -> None:
    found_field, found = _violation(indicator)
    assert found_field == field
    assert found.startswith(description)


def test_default_source_may_be_written_where_none_is_taken() -> None:
    sets = {"calm": {"type": "triangular", "parameters": [0, 1, 2]}}
    strategy = strategy_from_dict(
        strategy_dict(indicators=[{"name": "ATR", "source": "close"}], fuzzy_sets={"atr": sets})
    )
    assert strategy.indicators[0].feature_id == "atr_14"


def test_named_output_of_bollinger_bands_takes_fuzzy_sets() -> None:
    sets = {"low": {"type": "triangular", "parameters": [-0.5, 0, 0.5]}}
    strategy = strategy_from_dict(
        strategy_dict(indicators=[{"name": "BollingerBands"}], fuzzy_sets={"bbands_20.percent_b": sets})
    )
    assert list(strategy.fuzzy_sets) == ["bbands_20.percent_b"]


def test_strategy_reads_back_equal_with_every_indicator() -> None:
    sets = {"low": {"type": "triangular", "parameters": [-0.5, 0, 0.5]}}
    strategy = strategy_from_dict(
        strategy_dict(
            indicators=[{"name": name} for name in SIGNATURES], fuzzy_sets={name: dict(sets) for name in SIGNATURES}
        )
    )
    assert strategy_from_dict(strategy.to_dict()) == strategy


def test_page_of_indicators_is_the_one_written_from_the_signatures() -> None:
    page = (REPOSITORY / "docs" / "indicators.md").read_text()
    assert page == indicator_page(), "run: python -m ktrdr_core.config.indicator_page > docs/indicators.md"


def test_page_links_lead_to_its_sections() -> None:
    page = indicator_page()
    links = re.findall(r"\]\(#([a-z0-9_]+)\)", page)
    assert links == re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(SIGNATURES)
