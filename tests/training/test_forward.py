from __future__ import annotations

import numpy as np
import pytest
import torch

from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.forward import BLOCK_ROWS, PaddedRows, compute_logits
from tests.kit.training import make_network, make_part


@pytest.mark.parametrize("num_rows", [1, 7, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_logits_are_those_of_a_whole_forward_pass(num_rows: int) -> None:
    network, part = make_network(), make_part(num_rows, 3)
    logits = compute_logits(network, PaddedRows(part.X, "cpu"))
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(part.X)).numpy()
    assert logits.shape == (num_rows, 3)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_rows_that_follow_change_no_bit_of_those_before() -> None:
    network, part = make_network(hidden_layers=(33, 17)), make_part(2500, 3)
    with deterministic_torch("cpu"):
        whole = compute_logits(network, PaddedRows(part.X, "cpu"))
        for stop in (1, 3, 100, 1025, 2499):
            np.testing.assert_array_equal(compute_logits(network, PaddedRows(part.X[:stop], "cpu")), whole[:stop])


def test_training_mode_is_left_as_it_was() -> None:
    network = make_network().train()
    compute_logits(network, PaddedRows(make_part(3, 1).X, "cpu"))
    assert network.training
