"""Evaluation in fixed blocks: what a row answers, and that nothing else changes a bit of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ktrdr_core.datasets.dataset import DatasetPart, DataSplit, SeriesRows
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.forward import (
    BLOCK_ROWS,
    MIN_BLOCK_ROWS,
    WINDOW_BLOCK_ROWS,
    block_rows,
    part_outputs,
    series_outputs,
    split_outputs,
)
from ktrdr_core.features.scaler import Scaler
from ktrdr_core.models.network import Network
from tests.kit.networks import FAMILIES, WINDOW_BARS, make_matrix, network_of, part_of

EMBEDDING = {"input_size": 9, "num_symbols": 3, "symbol_embedding_dim": 2}
# Numbers of units that no vector width divides: the last ones of a row go through the kernels' remainder loops.
UNITS = (33, 17)


def window_of(family: str) -> int:
    return 1 if family == "mlp" else WINDOW_BARS


def one_by_one(network: Network, matrix: NDArray[np.float32], window_bars: int) -> NDArray[np.float32]:
    """Return the outputs of every window, each in a forward pass of its own."""
    rows = []
    with deterministic_torch("cpu"), torch.no_grad():
        for last in range(window_bars - 1, len(matrix)):
            window = torch.from_numpy(matrix[last - window_bars + 1 : last + 1].copy())
            rows.append(network(window if window_bars == 1 else window[None]).numpy()[0])
    return np.array(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_bars", [5, 12, WINDOW_BLOCK_ROWS + 4, WINDOW_BLOCK_ROWS + 5])
def test_outputs_are_those_of_each_window_alone(family: str, num_bars: int) -> None:
    network, matrix = network_of(family).eval(), make_matrix(num_bars)
    window_bars = window_of(family)
    outputs = series_outputs(network, matrix, window_bars=window_bars)
    assert outputs.shape == (num_bars - window_bars + 1, 3)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, one_by_one(network, matrix, window_bars), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_bars_that_follow_change_no_bit_of_those_before(family: str) -> None:
    network, matrix = network_of(family, hidden_layers=UNITS), make_matrix(2_500)
    window_bars = window_of(family)
    size = block_rows(window_bars, matrix.shape[1])
    whole = series_outputs(network, matrix, window_bars=window_bars)
    np.testing.assert_array_equal(series_outputs(network, matrix, window_bars=window_bars), whole)
    stops = [5, 6, 7, 33, 100, *(size + window_bars + shift for shift in (-3, -2, -1, 0, 1)), 2 * size + 9, 2_499]
    for stop in stops:
        short = series_outputs(network, matrix[:stop], window_bars=window_bars)
        np.testing.assert_array_equal(short, whole[: len(short)])
        assert len(short) == stop - window_bars + 1


@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 1_000),
    stop=st.integers(WINDOW_BARS, 300),
    units=st.integers(1, 40),
)
def test_no_series_lets_its_future_change_a_bit(family: str, seed: int, stop: int, units: int) -> None:
    network, matrix = network_of(family, seed=seed, hidden_layers=(units,)), make_matrix(300, seed=seed)
    whole = series_outputs(network, matrix, window_bars=window_of(family))
    changed = matrix.copy()
    changed[stop:] = 1e6
    for future in (matrix[:stop], changed):
        again = series_outputs(network, future, window_bars=window_of(family))
        known = stop - window_of(family) + 1
        np.testing.assert_array_equal(again[:known], whole[:known])


@pytest.mark.parametrize("family", FAMILIES)
def test_where_a_matrix_lies_in_memory_changes_no_bit(family: str) -> None:
    network, matrix = network_of(family, hidden_layers=UNITS), make_matrix(300)
    expected = series_outputs(network, matrix, window_bars=window_of(family))
    for offset in range(1, 17):
        room = np.zeros(matrix.size + offset, dtype=np.float32)
        moved = room[offset:].reshape(matrix.shape)
        moved[:] = matrix
        moved.setflags(write=False)
        np.testing.assert_array_equal(series_outputs(network, moved, window_bars=window_of(family)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_number_of_threads_changes_no_bit(family: str) -> None:
    network, matrix = network_of(family, hidden_layers=UNITS), make_matrix(600)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(series_outputs(network, matrix, window_bars=window_of(family)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_bars", [0, WINDOW_BARS - 1])
def test_series_shorter_than_a_window_has_no_outputs(family: str, num_bars: int) -> None:
    outputs = series_outputs(network_of(family), make_matrix(num_bars), window_bars=window_of(family))
    assert outputs.shape == (num_bars if family == "mlp" else 0, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_several_symbols_answer_as_their_series_do(family: str) -> None:
    window_bars = window_of(family)
    network, matrix = network_of(family, hidden_layers=UNITS, **EMBEDDING), make_matrix(1_900, 9)
    series = (
        SeriesRows(symbol="EURUSD", start=0, stop=700, first_bar=20),
        SeriesRows(symbol="GBPUSD", start=700, stop=760, first_bar=0),
        SeriesRows(symbol="USDJPY", start=760, stop=1_900, first_bar=3),
    )
    wanted = np.concatenate([np.arange(520, 700), np.arange(1_500, 1_880), [1_890, 1_899]])
    part = part_of(matrix, wanted, window_bars)
    outputs = split_outputs(network, split_of(part, series), part)
    assert outputs.shape == (len(wanted), 3)
    for one in (series[0], series[2]):
        whole = series_outputs(network, matrix[one.start : one.stop], window_bars=window_bars)
        own = (wanted >= one.start) & (wanted < one.stop)
        np.testing.assert_array_equal(outputs[own], whole[wanted[own] - one.start - window_bars + 1])


def test_only_blocks_with_a_wanted_row_are_computed() -> None:
    network, matrix = network_of("mlp"), make_matrix(10 * BLOCK_ROWS)
    part = part_of(matrix, np.array([3 * BLOCK_ROWS, 3 * BLOCK_ROWS + 5, 9 * BLOCK_ROWS]))
    calls: list[str] = []
    series = (SeriesRows(symbol="EURUSD", start=0, stop=len(matrix), first_bar=0),)
    split_outputs(network, split_of(part, series), part, check=lambda: calls.append("block"))
    assert len(calls) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_part_answer_as_their_windows_do(family: str) -> None:
    window_bars = window_of(family)
    network, matrix = network_of(family).eval(), make_matrix(700)
    rows = np.sort(np.random.default_rng(1).choice(np.arange(window_bars - 1, 700), size=300, replace=False))
    part = part_of(matrix, rows, window_bars)
    outputs = part_outputs(network, part)
    expected = one_by_one(network, matrix, window_bars)[rows - window_bars + 1]
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    np.testing.assert_array_equal(part_outputs(network, part), outputs)
    resident = part_outputs(network, part, matrix=torch.from_numpy(matrix))
    np.testing.assert_allclose(resident, expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_part_without_rows_has_no_outputs(family: str) -> None:
    part = part_of(make_matrix(50), np.zeros(0, dtype=np.int64), window_of(family))
    series = (SeriesRows(symbol="EURUSD", start=0, stop=50, first_bar=0),)
    assert part_outputs(network_of(family), part).shape == (0, 3)
    assert part_outputs(network_of(family), part, matrix=torch.from_numpy(part.matrix)).shape == (0, 3)
    assert split_outputs(network_of(family), split_of(part, series), part).shape == (0, 3)


@pytest.mark.parametrize("is_training", [True, False])
def test_mode_is_left_as_it_was_also_where_the_check_raises(is_training: bool) -> None:
    network = network_of("mlp", dropout=0.5).train(is_training)
    series_outputs(network, make_matrix(3))
    assert network.training is is_training

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        series_outputs(network, make_matrix(3), check=stop)
    assert network.training is is_training


def test_dropout_is_off() -> None:
    matrix = make_matrix(20)
    np.testing.assert_array_equal(
        series_outputs(network_of("mlp", dropout=0.5).train(), matrix), series_outputs(network_of("mlp"), matrix)
    )


def test_check_is_called_before_each_block() -> None:
    calls: list[str] = []
    series_outputs(network_of("mlp"), make_matrix(BLOCK_ROWS + 1), check=lambda: calls.append("block"))
    assert len(calls) == 2


def test_blocks_of_long_windows_are_smaller() -> None:
    assert block_rows(1, 10_000) == BLOCK_ROWS
    assert block_rows(20, 30) == WINDOW_BLOCK_ROWS
    assert MIN_BLOCK_ROWS <= block_rows(500, 200) < WINDOW_BLOCK_ROWS
    assert block_rows(1_001, 10_000) == MIN_BLOCK_ROWS


def test_conditions_of_equal_bits_are_set_and_put_back() -> None:
    def conditions() -> tuple[int, bool, bool]:
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        return torch.get_num_threads(), is_deterministic, torch.backends.cudnn.allow_tf32

    before = conditions()
    with deterministic_torch("cuda:0"):
        assert conditions() == (1, True, False)
    assert conditions() == before
    with deterministic_torch("cpu"):
        assert conditions() == (1, *before[1:])
    assert conditions() == before


def split_of(part: DatasetPart, series: tuple[SeriesRows, ...]) -> DataSplit:
    return DataSplit(
        train=part,
        validation=part,
        test=part,
        series=series,
        columns=(),
        symbols=tuple(one.symbol for one in series),
        scaler=Scaler("none", np.zeros(part.num_features), np.ones(part.num_features)),
        horizon_bars=1,
        purged_rows=0,
    )
