"""The one table of states, walked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.domain.states import TERMINAL_STATES, TRANSITIONS, TrainingState, check_transition
from ktrdr_core.errors import IllegalStateError


def test_table_covers_every_state() -> None:
    assert set(TRANSITIONS) == set(TrainingState)


@given(st.data())
def test_every_walk_that_loses_finitely_many_attempts_ends_in_a_terminal_state_and_stays_there(
    data: st.DataObject,
) -> None:
    state = TrainingState.QUEUED
    num_losses = data.draw(st.integers(0, 5))
    for _ in range(len(TrainingState) * (num_losses + 1)):
        if state.is_terminal:
            break
        targets = TRANSITIONS[state] if num_losses else TRANSITIONS[state] - {TrainingState.QUEUED}
        new = data.draw(st.sampled_from(sorted(targets)))
        num_losses -= new is TrainingState.QUEUED
        state = new
    assert state in TERMINAL_STATES
    for new in TrainingState:
        with pytest.raises(IllegalStateError, match=state):
            check_transition(state, new, subject="training t")


def test_only_what_runs_goes_back_to_the_queue_and_nothing_that_is_being_cancelled() -> None:
    sources = {state for state, targets in TRANSITIONS.items() if TrainingState.QUEUED in targets}
    assert sources == {TrainingState.RUNNING, TrainingState.UPLOADING}


def test_completed_is_reached_only_through_uploading_or_a_late_cancel() -> None:
    sources = {state for state, targets in TRANSITIONS.items() if TrainingState.COMPLETED in targets}
    assert sources == {TrainingState.UPLOADING, TrainingState.CANCELLING}


def test_refusal_names_subject_states_and_way_out() -> None:
    with pytest.raises(IllegalStateError) as caught:
        check_transition(TrainingState.RUNNING, TrainingState.COMPLETED, subject="training 4f")
    assert "training 4f is RUNNING and cannot become COMPLETED" in caught.value.message
    assert caught.value.metadata == {"state": "RUNNING"}
