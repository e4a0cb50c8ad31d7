from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.evaluation.baselines import compute_baselines


def test_majorities_are_of_the_judged_part_and_of_the_training_part() -> None:
    y = np.array([0] * 60 + [1] * 30 + [2] * 10)
    found = compute_baselines(y, np.array([10, 20, 70]), seed=1)
    assert found["majority_class"] == "BUY"
    assert found["majority_accuracy"] == 0.6
    assert found["train_majority_accuracy"] == 0.1


@given(
    counts=st.tuples(*[st.integers(0, 300)] * 3).filter(any),
    train=st.tuples(*[st.integers(0, 50)] * 3).filter(any),
    seed=st.integers(0, 2**32),
)
def test_random_answers_score_what_they_are_expected_to(
    counts: tuple[int, ...], train: tuple[int, ...], seed: int
) -> None:
    """Expected: sum of judged share * training share; the mean of 1,000 draws is within six standard errors."""
    y = np.repeat([0, 1, 2], counts)
    found = compute_baselines(y, np.array(train), seed=seed)
    shares = [each / sum(train) for each in train]
    expected = sum(n * share for n, share in zip(counts, shares, strict=True)) / len(y)
    recalls = [share for n, share in zip(counts, shares, strict=True) if n]
    error = 6 * 0.5 / (1_000 * min(n for n in counts if n)) ** 0.5
    assert found["random_accuracy"] == pytest.approx(expected, abs=error)
    assert found["random_balanced_accuracy"] == pytest.approx(sum(recalls) / len(recalls), abs=error)


def test_random_answers_score_what_drawing_each_row_scores() -> None:
    y = np.array([0] * 50 + [1] * 25 + [2] * 5)
    draws = random.Random(3)
    scores, balanced = [], []
    for _ in range(2_000):
        answers = draws.choices([0, 1, 2], weights=[5, 3, 2], k=len(y))
        right = [a == b for a, b in zip(answers, y.tolist(), strict=True)]
        scores.append(sum(right) / len(y))
        balanced.append((sum(right[:50]) / 50 + sum(right[50:75]) / 25 + sum(right[75:]) / 5) / 3)
    found = compute_baselines(y, np.array([50, 30, 20]), seed=9)
    assert found["random_accuracy"] == pytest.approx(sum(scores) / 2_000, abs=0.01)
    assert found["random_balanced_accuracy"] == pytest.approx(sum(balanced) / 2_000, abs=0.015)


def test_random_answers_depend_on_the_seed_alone() -> None:
    y, train = np.array([0, 1, 2, 1]), np.array([3, 4, 5])
    assert compute_baselines(y, train, seed=1) == compute_baselines(y, train, seed=1)
    assert compute_baselines(y, train, seed=1) != compute_baselines(y, train, seed=2)


def test_class_that_training_never_saw_is_never_drawn() -> None:
    found = compute_baselines(np.array([2, 2]), np.array([1, 1, 0]), seed=1)
    assert found["random_accuracy"] == found["random_balanced_accuracy"] == 0.0
