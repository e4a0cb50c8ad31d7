"""What `ktrdr train` asks of the queue, and whose bars it asks for."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest
from ktrdr_client.cli.train_command import TrainArguments, build_scheduling, build_spec
from ktrdr_client.settings import ClientSettings

from ktrdr_core.domain.scheduling import RetryMode, Scheduling
from ktrdr_core.domain.spec import DataMode
from ktrdr_core.errors import InvalidSpecError


def _scheduling(user: str = "login", **typed: Any) -> Scheduling:
    return build_scheduling(TrainArguments(strategy="s", **typed), user)


@pytest.mark.parametrize(
    ("retries", "mode", "allowed"),
    [
        (None, RetryMode.ON_INFRASTRUCTURE_FAILURE, 5),
        (0, RetryMode.NEVER, 0),
        (1, RetryMode.ON_INFRASTRUCTURE_FAILURE, 1),
        (100, RetryMode.ON_INFRASTRUCTURE_FAILURE, 100),
    ],
)
def test_retries_are_the_attempts_beyond_the_first(retries: int | None, mode: RetryMode, allowed: int) -> None:
    scheduling = _scheduling(retries=retries)
    assert (scheduling.retry, scheduling.num_retries_allowed) == (mode, allowed)


@pytest.mark.parametrize(
    ("typed", "mode"), [(None, DataMode.BACKEND), ("backend", DataMode.BACKEND), ("local", DataMode.LOCAL)]
)
def test_bars_are_those_of_the_backend_unless_others_are_asked_for(typed: str | None, mode: DataMode) -> None:
    assert build_spec(TrainArguments(strategy="s", data_mode=typed), "name: s").data_mode is mode


def test_user_that_was_typed_wins_also_if_it_is_nobody() -> None:
    assert _scheduling().user == "login"
    assert build_scheduling(TrainArguments(strategy="s", user="alice"), "login").user == "alice"
    assert build_scheduling(TrainArguments(strategy="s", user=""), "login").user == ""


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"retries": -1}, "max_retries must be 0 to 100, was -1"),
        ({"retries": 101}, "max_retries must be 0 to 100, was 101"),
        ({"priority": 101}, "priority must be -100 to 100, was 101"),
    ],
)
def test_value_that_breaks_a_rule_is_named(typed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpecError, match=message):
        _scheduling(**typed)


@pytest.mark.parametrize(
    ("environment", "user"),
    [
        ({"KTRDR_USER": "alice", "LOGNAME": "bob"}, "alice"),
        ({"KTRDR_USER": "", "LOGNAME": "bob", "USER": "carol"}, "bob"),
        ({"USER": "carol"}, "carol"),
        ({"USER": "DOMAIN\\\\carol"}, ""),
        ({"USER": "x" * 65}, ""),
        ({}, pwd.getpwuid(os.getuid()).pw_name),
    ],
)
def test_user_is_the_one_set_else_the_login_name_if_it_fits(environment: dict[str, str], user: str) -> None:
    assert ClientSettings.load(environment=environment).user == user


def test_user_that_was_set_and_does_not_fit_is_refused_not_replaced() -> None:
    user = ClientSettings.load(environment={"KTRDR_USER": "a b", "LOGNAME": "bob"}).user
    with pytest.raises(InvalidSpecError, match="user must be at most 64 letters"):
        _scheduling(user)
