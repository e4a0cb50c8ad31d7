import pytest
import yaml
from ktrdr_client.cli.assignments import apply_assignments

from ktrdr_core.errors import InvalidInputError

TEXT = """
name: demo
indicators:
  - {name: rsi, period: 14}
  - {name: macd}
model:
  type: mlp
  training: {epochs: 10}
"""


def applied(*assignments: str) -> object:
    return yaml.safe_load(apply_assignments(TEXT, assignments))


def test_nothing_to_set_leaves_the_text_as_it_is() -> None:
    assert apply_assignments(TEXT, ()) == TEXT


def test_values_are_yaml_and_everything_else_stays() -> None:
    before = yaml.safe_load(TEXT)
    after = applied(
        "model.training.epochs=3", "indicators[0].period=21", "name=other", "model.architecture.hidden_layers=[8, 4]"
    )
    before["model"]["training"]["epochs"] = 3
    before["indicators"][0]["period"] = 21
    before["name"] = "other"
    before["model"]["architecture"] = {"hidden_layers": [8, 4]}
    assert after == before


def test_later_assignment_wins() -> None:
    assert applied("name=a", "name=b")["name"] == "b"  # type: ignore[index]


def test_value_may_hold_an_equals_sign() -> None:
    assert applied("name='a=b'")["name"] == "a=b"  # type: ignore[index]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.training.epochs", "must be PATH=VALUE"),
        ("=3", "must be PATH=VALUE"),
        ("a..b=3", "must be PATH=VALUE"),
        ("indicators[x].period=3", "must be PATH=VALUE"),
        ("indicators[2].period=3", r"has 2 entries, numbered from 0; \[2\] is past the end"),
        ("indicators.period=3", "indicators is a list; give a number in brackets"),
        ("model[0]=3", r"model is not a list; leave \[0\] out"),
        ("name.x=3", "name is a value, not a section"),
        ("name=[1", "the value is no YAML"),
    ],
)
def test_assignment_that_leads_nowhere_is_refused_by_name(assignment: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        applied(assignment)
