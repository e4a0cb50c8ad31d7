from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from ktrdr_core.domain.cancellation import LocalCancellationToken
from ktrdr_core.errors import CancellationError, InvalidInputError, NonFiniteLossError
from ktrdr_core.evaluation.forward import PaddedRows, compute_logits
from ktrdr_core.evaluation.metrics import accuracy, cross_entropy
from ktrdr_core.models.network import derive_seed
from ktrdr_core.training.model_trainer import SHUFFLE_STREAM, TrainedModel
from tests.kit.training import CountingToken, make_network, make_part, make_trainer, recorder

TRAIN, VALIDATION = make_part(200, 1), make_part(60, 2)


def train(**settings: Any) -> TrainedModel:
    return make_trainer(**settings).train(make_network(seed=settings.get("seed", 42)), TRAIN, VALIDATION)


def weights(trained: TrainedModel) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in trained.model.state_dict().items()}


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, second, other = train(seed=1), train(seed=1), train(seed=2)
    assert weights(first) == weights(second) != weights(other)
    assert first.history == second.history != other.history


def test_numbers_drawn_by_others_change_nothing() -> None:
    torch.manual_seed(1)
    undisturbed = train()
    torch.manual_seed(99)

    def disturb(epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        torch.rand(7)
        np.random.rand(3)

    assert weights(train(progress_callback=disturb)) == weights(undisturbed)


def test_reporting_at_other_times_changes_no_metric() -> None:
    seen: list[dict[str, Any]] = []
    assert train(progress_callback=recorder(seen)).history == train().history
    assert any(metrics["progress_type"] == "batch" for metrics in seen)


def test_random_state_and_threads_of_the_caller_are_left_alone() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state()
        train()
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)


def test_loss_and_accuracy_of_an_epoch_are_those_of_its_rows() -> None:
    """With a negligible learning rate an epoch's figures are those of the initial weights on all rows."""
    network = make_network(dropout=0.0)
    logits = compute_logits(network, PaddedRows(TRAIN.X, "cpu"))
    trained = make_trainer(epochs=1, learning_rate=1e-12, batch_size=64).train(network, TRAIN, VALIDATION)
    assert trained.history[0]["train_loss"] == pytest.approx(cross_entropy(logits, TRAIN.y), rel=1e-6)
    assert trained.history[0]["train_accuracy"] == accuracy(logits, TRAIN.y)


def test_loop_does_what_a_plain_loop_of_torch_does() -> None:
    """The same shuffles, without dropout, in the plainest code: equal to rounding after two epochs."""
    trained = make_trainer(epochs=2, seed=3).train(make_network(seed=3, dropout=0.0), TRAIN, VALIDATION)
    model = make_network(seed=3, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(derive_seed(3, SHUFFLE_STREAM))
    x, y = torch.from_numpy(TRAIN.X), torch.from_numpy(TRAIN.y)
    for _ in range(2):
        order = torch.randperm(len(y), generator=generator)
        for start in range(0, len(y), 16):
            rows = order[start : start + 16]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    final = trained.checkpoint.model
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_built_optimizer_learns(optimizer: str) -> None:
    history = train(optimizer=optimizer, epochs=4, learning_rate=0.1 if optimizer == "sgd" else 0.01).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.02


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    layer = next(make_network(dropout=0.25, hidden_layers=(50,)).dropouts())
    x = torch.ones(4000, 50)
    dropped = layer(x)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert layer.eval()(x) is x


def test_model_comes_back_with_its_best_weights_not_its_last() -> None:
    noise = make_part(40, 3, is_learnable=False)
    trained = make_trainer(epochs=25, learning_rate=0.05).train(make_network(dropout=0.0), TRAIN, noise)
    losses = [metrics["val_loss"] for metrics in trained.history]
    assert trained.best_epoch == losses.index(min(losses)) + 1 < 25
    logits = compute_logits(trained.model, PaddedRows(noise.X, "cpu"))
    assert cross_entropy(logits, noise.y) == min(losses) != losses[-1]
    assert not trained.model.training


@pytest.mark.parametrize("with_callback", [True, False])
def test_loss_that_is_not_finite_fails_and_names_epoch_and_batch(with_callback: bool) -> None:
    part = make_part(200, 1)
    part.X[17, 2] = np.nan
    order = torch.randperm(200, generator=torch.Generator().manual_seed(derive_seed(42, SHUFFLE_STREAM)))
    batch = order.tolist().index(17) // 16 + 1
    trainer = make_trainer(recorder([]) if with_callback else None)
    with pytest.raises(NonFiniteLossError, match=f"epoch 1, batch {batch};") as caught:
        trainer.train(make_network(), part, VALIDATION)
    assert caught.value.metadata == {"epoch": "1", "batch": str(batch)}


def test_learning_rate_of_1e30_fails() -> None:
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        train(learning_rate=1e30)


def test_validation_loss_that_is_not_finite_fails() -> None:
    part = make_part(60, 2)
    part.X[0, 0] = np.inf
    with pytest.raises(NonFiniteLossError, match="validation"):
        make_trainer().train(make_network(), TRAIN, part)


def test_metrics_have_the_keys_of_the_contract() -> None:
    seen: list[dict[str, Any]] = []
    train(progress_callback=recorder(seen))
    keys = {
        "progress_type",
        "epoch",
        "total_epochs",
        "batch",
        "total_batches_per_epoch",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
        "batch_time",
        "rows_per_second",
    }
    assert {metrics["progress_type"] for metrics in seen} == {"epoch", "batch"}
    for metrics in seen:
        assert set(metrics) == keys


def test_every_epoch_is_reported_once_and_batches_between() -> None:
    seen: list[dict[str, Any]] = []
    trained = train(progress_callback=recorder(seen), epochs=4)
    epochs = [metrics for metrics in seen if metrics["progress_type"] == "epoch"]
    assert [metrics["epoch"] for metrics in epochs] == [1, 2, 3, 4]
    assert [metrics["val_loss"] for metrics in epochs] == [metrics["val_loss"] for metrics in trained.history]
    batches = [metrics for metrics in seen if metrics["progress_type"] == "batch"]
    assert batches[0]["batch"] == 10
    assert all(0 < metrics["batch"] < metrics["total_batches_per_epoch"] == 13 for metrics in batches)
    positions = [(metrics["epoch"], metrics["batch"]) for metrics in seen]
    assert positions == sorted(set(positions))


def test_failing_callback_is_logged_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("the watcher broke")

    with caplog.at_level(logging.ERROR):
        trained = train(progress_callback=recorder([], fail))
    assert weights(trained) == weights(train())
    assert any(record.exc_info for record in caplog.records)


def test_cancellation_raised_by_a_callback_ends_training() -> None:
    seen: list[dict[str, Any]] = []

    def stop() -> None:
        raise CancellationError("the watcher wants no more")

    with pytest.raises(CancellationError, match="no more"):
        train(progress_callback=recorder(seen, stop))
    assert len(seen) == 1


def test_cancel_ends_at_the_next_batch_without_another_callback() -> None:
    token = LocalCancellationToken()
    seen: list[dict[str, Any]] = []
    with pytest.raises(CancellationError, match="user said so"):
        train(progress_callback=recorder(seen, lambda: token.cancel("user said so")), cancellation_token=token)
    assert [(metrics["epoch"], metrics["batch"]) for metrics in seen] == [(1, 10)]


def test_token_is_asked_at_every_batch() -> None:
    token = CountingToken(10**9)
    train(cancellation_token=token, epochs=2)
    assert token.asked >= 2 * 13


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 16, 17, 18, 30])
def test_cancel_is_noticed_whenever_it_comes(limit: int) -> None:
    token = CountingToken(limit)
    with pytest.raises(CancellationError, match="enough"):
        train(cancellation_token=token, epochs=50)
    assert token.asked <= limit + 1


@pytest.mark.parametrize("part", ["train", "validation"])
def test_part_without_rows_is_refused(part: str) -> None:
    empty = make_part(0, 1)
    with pytest.raises(InvalidInputError, match="no rows"):
        make_trainer().train(
            make_network(), empty if part == "train" else TRAIN, empty if part == "validation" else VALIDATION
        )


def test_batch_larger_than_the_part_is_one_batch() -> None:
    seen: list[dict[str, Any]] = []
    train(progress_callback=recorder(seen), batch_size=5000)
    assert {metrics["total_batches_per_epoch"] for metrics in seen} == {1}
