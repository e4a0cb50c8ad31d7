"""Masks against the published generator in plain Python, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.models.dropout import SeededDropout, derive_seed, draw_kept, keep_threshold
from ktrdr_core.models.mask_kernel import fill_bits, fill_mask

WORD = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """Return the first outputs of splitmix64 as published (Vigna's splitmix64.c)."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        outputs.append(z ^ (z >> 31))
    return outputs


def plain_kept(seed: int, first_row: int, num_rows: int, width: int, rate: float) -> np.ndarray:
    pairs = -(-width // 2)
    words = splitmix64(seed, (first_row + num_rows) * pairs)[first_row * pairs :]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    return np.array(halves).reshape(num_rows, 2 * pairs)[:, :width] < keep_threshold(rate)


def test_generator_gives_the_published_numbers() -> None:
    """Of seed 1234567, as listed for splitmix64 on Rosetta Code."""
    bits = np.empty(3, dtype=np.uint64)
    fill_bits(1234567, 0, 3, 1, bits)
    assert bits.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(1234567, 3) == bits.tolist()


@given(
    seed=st.integers(0, 2**63 - 1),
    first_row=st.integers(0, 40),
    num_rows=st.integers(1, 5),
    width=st.integers(1, 9),
    rate=st.floats(0.01, 0.99),
)
def test_torch_and_compiled_masks_equal_plain_python(
    seed: int, first_row: int, num_rows: int, width: int, rate: float
) -> None:
    expected = plain_kept(seed, first_row, num_rows, width, rate)
    rows = torch.arange(first_row, first_row + num_rows)
    assert np.array_equal(draw_kept(seed, rows, width, rate).numpy(), expected)
    mask = np.empty((num_rows, width), dtype=np.float32)
    fill_mask(seed, first_row, keep_threshold(rate), 2.0, np.empty((width + 1) // 2, dtype=np.uint64), mask)
    assert np.array_equal(mask, np.where(expected, 2.0, 0.0))


def test_rows_beyond_32_bits_still_agree() -> None:
    first_row = 2**40 + 7
    mask = np.empty((3, 5), dtype=np.float64)
    fill_mask(99, first_row, keep_threshold(0.4), 1.0, np.empty(3, dtype=np.uint64), mask)
    kept = draw_kept(99, torch.arange(first_row, first_row + 3), 5, 0.4)
    assert np.array_equal(mask.astype(bool), kept.numpy())


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_share_that_is_kept_is_the_one_asked_for(rate: float) -> None:
    kept = draw_kept(derive_seed(3, 1), torch.arange(20_000), 51, rate).double()
    deviation = math.sqrt(rate * (1 - rate))
    assert abs(float(kept.mean()) - (1 - rate)) < 4 * deviation / math.sqrt(kept.numel())
    by_unit, by_row = kept.mean(dim=0), kept.mean(dim=1)
    assert float((by_unit - (1 - rate)).abs().max()) < 5 * deviation / math.sqrt(20_000)
    # Rows and units vary as independent draws do, neither more nor less.
    assert float(by_row.var()) == pytest.approx(rate * (1 - rate) / 51, rel=0.05)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.double().flatten(), b.double().flatten())))[0, 1])


def test_layers_lanes_rows_and_units_are_independent() -> None:
    rows, bound = torch.arange(20_000), 4 / math.sqrt(20_000 * 49)
    kept = draw_kept(derive_seed(42, 1), rows, 50, 0.3)
    other_layer = draw_kept(derive_seed(42, 2), rows, 50, 0.3)
    other_lane = draw_kept(derive_seed(43, 1), rows, 50, 0.3)
    for other in (other_layer, other_lane):
        assert abs(correlation(kept, other)) < bound
    for lag in (1, 2, 25, 32):
        assert abs(correlation(kept[lag:], kept[:-lag])) < bound
    for lag in (1, 2, 3):
        assert abs(correlation(kept[:, lag:], kept[:, :-lag])) < bound


def test_layer_silences_units_and_scales_the_rest_only_while_training() -> None:
    layer, x = SeededDropout(0.25, 50, seed=7), torch.ones(400, 50)
    y = layer.forward(x)
    assert set(y.flatten().tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    layer.eval()
    assert layer.forward(x) is x
    assert layer.random_state() == 400


@pytest.mark.parametrize("batches", [[1, 31, 32], [64], [3_000, 7, 5_000], [2_047, 2, 2_047]])
def test_masks_do_not_depend_on_how_rows_are_batched(batches: list[int]) -> None:
    layer = SeededDropout(0.4, 3, seed=7)
    joined = torch.cat([layer.forward(torch.ones(rows, 3)) for rows in batches])
    kept = draw_kept(7, torch.arange(sum(batches)), 3, 0.4)
    assert torch.equal(joined, kept.float() * (1 / 0.6))
    assert layer.random_state() == sum(batches)


@pytest.mark.parametrize("next_row", [0, 5, 5_000])
def test_restored_count_goes_on_with_the_same_bits(next_row: int) -> None:
    through, resumed, x = SeededDropout(0.4, 6, seed=7), SeededDropout(0.4, 6, seed=7), torch.ones(32, 6)
    if next_row:
        through.forward(torch.ones(next_row, 6))
    resumed.forward(x)
    resumed.restore_random_state(next_row)
    for _ in range(3):
        assert torch.equal(through.forward(x), resumed.forward(x))
    through.restore_random_state(next_row + 32)
    assert torch.equal(through.forward(x), draw_kept(7, torch.arange(next_row + 32, next_row + 64), 6, 0.4) * (1 / 0.6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_dtype_gets_the_same_bits_in_its_own_precision(dtype: torch.dtype) -> None:
    layer, x = SeededDropout(0.4, 5, seed=7), torch.ones(9, 5, dtype=dtype)
    y = layer.forward(x)
    assert y.dtype == dtype
    assert torch.equal(y != 0, draw_kept(7, torch.arange(9), 5, 0.4))


def test_dtype_may_change_between_batches() -> None:
    layer = SeededDropout(0.4, 5, seed=7)
    layer.forward(torch.ones(4, 5))
    assert torch.equal(layer.forward(torch.ones(4, 5).double()) != 0, draw_kept(7, torch.arange(4, 8), 5, 0.4))


def test_each_bar_of_a_window_is_a_row() -> None:
    windows, flat = SeededDropout(0.4, 5, seed=7), SeededDropout(0.4, 5, seed=7)
    x = torch.randn(6, 4, 5)
    assert torch.equal(windows.forward(x), flat.forward(x.view(24, 5)).view(6, 4, 5))
    assert windows.random_state() == 24


def test_count_on_a_device_gives_the_same_bits_and_state() -> None:
    here, there, x = SeededDropout(0.4, 5, seed=7), SeededDropout(0.4, 5, seed=7), torch.ones(9, 5)
    assert torch.equal(here.forward(x), there.forward(x))
    there.count_on_device(torch.device("cpu"))
    assert torch.equal(here.forward(x), there.forward(x))
    assert here.random_state() == there.random_state() == 18
    there.restore_random_state(9)
    here.restore_random_state(9)
    assert torch.equal(here.forward(x), there.forward(x))


def test_gradient_passes_kept_units_alone() -> None:
    layer, x = SeededDropout(0.5, 8, seed=7), torch.randn(4, 8, requires_grad=True)
    y = layer.forward(x)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, (y != 0).float() * 2)


def test_streams_have_seeds_of_their_own_within_63_bits() -> None:
    seeds = {derive_seed(seed, stream) for seed in range(50) for stream in range(50)}
    assert len(seeds) == 2_500
    assert max(seeds) < 2**63
    assert derive_seed(0, 0) == splitmix64(0, 1)[0] >> 1
