from __future__ import annotations

import numpy as np
import pytest
import torch

from ktrdr_core.errors import CancellationError
from ktrdr_core.evaluation.forward import PaddedRows, compute_logits
from ktrdr_core.evaluation.importance import permutation_importance
from tests.kit.training import NUM_FEATURES, make_network, make_part, make_trainer

NAMES = [f"f{index}" for index in range(NUM_FEATURES)]
TEST = make_part(300, 9)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return make_trainer(epochs=10).train(make_network(), make_part(400, 1), make_part(60, 2)).model


def slow_importance(model: torch.nn.Module, seed: int, repeats: int) -> dict[str, float]:
    """Permute a copy and run the whole network, once per feature and repeat."""

    def score(X: np.ndarray) -> float:
        return float((compute_logits(model, PaddedRows(X, "cpu")).argmax(axis=1) == TEST.y).mean())

    baseline = score(TEST.X)
    found = {}
    for index, name in enumerate(NAMES):
        drops = []
        for repeat in range(repeats):
            X = TEST.X.copy()
            X[:, index] = X[np.random.default_rng([seed, index, repeat]).permutation(len(X)), index]
            drops.append(baseline - score(X))
        found[name] = float(np.mean(drops))
    return found


def importance(model: torch.nn.Module, seed: int = 4, repeats: int = 3) -> dict[str, float]:
    return permutation_importance(model, TEST.X, TEST.y, NAMES, seed=seed, repeats=repeats)  # type: ignore[arg-type]


def test_rank_one_updates_give_what_whole_forward_passes_give(model: torch.nn.Module) -> None:
    assert importance(model) == pytest.approx(slow_importance(model, 4, 3), abs=1e-9)


def test_features_that_decide_matter_and_the_others_do_not(model: torch.nn.Module) -> None:
    found = importance(model, repeats=5)
    assert min(found[name] for name in NAMES[:3]) > 0.1
    assert max(abs(found[name]) for name in NAMES[3:]) < 0.05


def test_importance_depends_on_the_seed_alone(model: torch.nn.Module) -> None:
    assert importance(model, seed=1) == importance(model, seed=1) != importance(model, seed=2)


def test_feature_without_weight_has_exactly_none() -> None:
    network = make_network()
    with torch.no_grad():
        network.first.weight[:, 4] = 0
    assert importance(network)["f4"] == 0.0


def test_check_runs_for_each_feature_and_repeat(model: torch.nn.Module) -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise CancellationError

    with pytest.raises(CancellationError):
        permutation_importance(
            model,  # type: ignore[arg-type]
            TEST.X,
            TEST.y,
            NAMES,
            seed=1,
            repeats=2,
            check=check,
        )
    assert len(calls) == 5
