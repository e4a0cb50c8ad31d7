from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.domain.cancellation import LocalCancellationToken
from ktrdr_core.errors import CancellationError, InvalidInputError, NonFiniteLossError
from ktrdr_core.evaluation.forward import part_outputs
from ktrdr_core.evaluation.metrics import accuracy, cross_entropy
from ktrdr_core.models.network import derive_seed
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.engines import EngineBuilder, build_engine
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.loop_state import SHUFFLE_STREAM
from ktrdr_core.training.model_trainer import TrainedModel
from tests.kit.training import (
    CountingToken,
    make_network,
    make_part,
    make_settings,
    make_trainer,
    make_window_part,
    recorder,
)

TRAIN, VALIDATION = make_part(200, 1), make_part(60, 2)


ENGINES: list[EngineBuilder] = [build_engine, EagerEngine]
both_engines = pytest.mark.parametrize("engine", ENGINES, ids=["stack", "eager"])


def train(engine: EngineBuilder = build_engine, **settings: Any) -> TrainedModel:
    network = make_network(seed=settings.get("seed", 42))
    return make_trainer(engine_builder=engine, **settings).train(network, TRAIN, VALIDATION)


def weights(trained: TrainedModel) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in trained.model.state_dict().items()}


@both_engines
def test_same_seed_gives_the_same_bits_and_another_seed_others(engine: EngineBuilder) -> None:
    first, second, other = train(engine, seed=1), train(engine, seed=1), train(engine, seed=2)
    assert weights(first) == weights(second) != weights(other)
    assert first.history == second.history != other.history


@both_engines
def test_numbers_drawn_by_others_change_nothing(engine: EngineBuilder) -> None:
    torch.manual_seed(1)
    undisturbed = train(engine)
    torch.manual_seed(99)

    def disturb(epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        torch.rand(7)
        np.random.rand(3)

    assert weights(train(engine, progress_callback=disturb)) == weights(undisturbed)


@both_engines
def test_reporting_at_other_times_changes_no_metric(engine: EngineBuilder) -> None:
    seen: list[dict[str, Any]] = []
    assert train(engine, progress_callback=recorder(seen)).history == train(engine).history
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


@both_engines
def test_loss_and_accuracy_of_an_epoch_are_those_of_its_rows(engine: EngineBuilder) -> None:
    """With a negligible learning rate an epoch's figures are those of the initial weights on all rows."""
    network = make_network(dropout=0.0)
    logits = part_outputs(network, TRAIN)
    trainer = make_trainer(epochs=1, learning_rate=1e-12, batch_size=64, engine_builder=engine)
    trained = trainer.train(network, TRAIN, VALIDATION)
    assert trained.history[0]["train_loss"] == pytest.approx(cross_entropy(logits, TRAIN.y), rel=1e-6)
    assert trained.history[0]["train_accuracy"] == accuracy(logits, TRAIN.y)


@both_engines
def test_loop_does_what_a_plain_loop_of_torch_does(engine: EngineBuilder) -> None:
    """The same shuffles, without dropout, in the plainest code: equal to rounding after two epochs."""
    trainer = make_trainer(epochs=2, seed=3, engine_builder=engine)
    trained = trainer.train(make_network(seed=3, dropout=0.0), TRAIN, VALIDATION)
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
    final = trained.checkpoint.lanes[0].weights
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-4, atol=1e-5)


@both_engines
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_learns(engine: EngineBuilder, optimizer: str) -> None:
    history = train(engine, optimizer=optimizer, epochs=4, learning_rate=0.1 if optimizer == "sgd" else 0.01).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.02


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    layer = next(make_network(dropout=0.25, hidden_layers=(50,)).dropouts())
    x = torch.ones(4000, 50)
    dropped = layer(x)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert layer.eval()(x) is x


@both_engines
def test_model_comes_back_with_its_best_weights_not_its_last(engine: EngineBuilder) -> None:
    noise = make_part(40, 3, is_learnable=False)
    trainer = make_trainer(epochs=25, learning_rate=0.05, engine_builder=engine)
    trained = trainer.train(make_network(dropout=0.0), TRAIN, noise)
    losses = [metrics["val_loss"] for metrics in trained.history]
    assert trained.best_epoch == losses.index(min(losses)) + 1 < 25
    logits = part_outputs(trained.model, noise)
    assert cross_entropy(logits, noise.y) == pytest.approx(min(losses), rel=1e-6)
    assert min(losses) < losses[-1]
    assert not trained.model.training


@both_engines
@pytest.mark.parametrize("with_callback", [True, False])
def test_loss_that_is_not_finite_fails_and_names_epoch_and_batch(engine: EngineBuilder, with_callback: bool) -> None:
    part = make_part(200, 1)
    part.X[17, 2] = np.nan
    order = torch.randperm(200, generator=torch.Generator().manual_seed(derive_seed(42, SHUFFLE_STREAM)))
    batch = order.tolist().index(17) // 16 + 1
    trainer = make_trainer(recorder([]) if with_callback else None, engine_builder=engine)
    with pytest.raises(NonFiniteLossError, match=f"epoch 1, batch {batch};") as caught:
        trainer.train(make_network(), part, VALIDATION)
    assert caught.value.metadata == {"epoch": "1", "batch": str(batch)}


@both_engines
def test_learning_rate_of_1e30_fails(engine: EngineBuilder) -> None:
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        train(engine, learning_rate=1e30)


@both_engines
def test_validation_loss_that_is_not_finite_fails(engine: EngineBuilder) -> None:
    part = make_part(60, 2)
    part.X[0, 0] = np.inf
    with pytest.raises(NonFiniteLossError, match="validation loss became nan after epoch 1, batch 13") as caught:
        make_trainer(engine_builder=engine).train(make_network(), TRAIN, part)
    assert caught.value.metadata == {"epoch": "1", "batch": "13"}


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
        "val_balanced_accuracy",
        "val_mcc",
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


@both_engines
@pytest.mark.parametrize("limit", [1, 2, 3, 8, 16, 17, 18, 30])
def test_cancel_is_noticed_whenever_it_comes(engine: EngineBuilder, limit: int) -> None:
    token = CountingToken(limit)
    with pytest.raises(CancellationError, match="enough"):
        train(engine, cancellation_token=token, epochs=50)
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


def test_learning_rate_follows_the_schedule_and_is_reported() -> None:
    seen: list[dict[str, Any]] = []
    schedule = {"type": "step", "factor": 0.5, "every_epochs": 2, "warm_up_epochs": 1}
    trained = train(epochs=6, schedule=schedule, progress_callback=recorder(seen))
    expected = pytest.approx([0.005, 0.01, 0.01, 0.005, 0.005, 0.0025])
    assert [metrics["learning_rate"] for metrics in trained.history] == expected
    assert {metrics["learning_rate"] for metrics in seen if metrics["epoch"] == 4} == {0.005}


@both_engines
def test_schedule_reaches_the_weights(engine: EngineBuilder) -> None:
    """After a factor of nearly nothing the weights stand still."""
    schedule = {"type": "step", "factor": 1e-12, "every_epochs": 1}
    moved = train(engine, epochs=4, schedule=schedule).checkpoint.lanes[0].weights
    first = train(engine, epochs=1).checkpoint.lanes[0].weights
    for name, tensor in first.items():
        torch.testing.assert_close(moved[name], tensor, rtol=1e-6, atol=1e-9)


@both_engines
@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy", "val_balanced_accuracy", "val_mcc"])
def test_early_stopping_ends_after_patience_with_the_weights_of_the_best_epoch(
    engine: EngineBuilder, metric: str
) -> None:
    noise = make_part(40, 3, is_learnable=False)
    seen: list[dict[str, Any]] = []
    trained = make_trainer(
        recorder(seen),
        epochs=40,
        learning_rate=0.05,
        early_stopping={"metric": metric, "patience": 3},
        engine_builder=engine,
    ).train(make_network(dropout=0.0), TRAIN, noise)
    values = [metrics[metric] for metrics in trained.history]  # type: ignore[literal-required]
    best = min(values) if metric == "val_loss" else max(values)
    assert trained.best_epoch == values.index(best) + 1 == len(values) - 3
    assert trained.early_stop_epoch == len(values) < 40
    assert seen[-1]["epoch"] == len(values)
    outputs = part_outputs(trained.model, noise)
    assert accuracy(outputs, noise.y) == trained.history[trained.best_epoch - 1]["val_accuracy"]


@pytest.mark.parametrize(("epochs", "early_stop_epoch"), [(4, None), (5, 4)])
def test_patience_that_runs_out_in_the_last_epoch_is_no_early_stop(epochs: int, early_stop_epoch: int | None) -> None:
    trained = train(epochs=epochs, early_stopping={"patience": 3, "min_delta": 10.0})
    assert trained.early_stop_epoch == early_stop_epoch
    assert len(trained.history) == 4


def test_validation_metrics_are_those_of_the_answers() -> None:
    trained = train(epochs=1)
    classes = part_outputs(trained.model, VALIDATION).argmax(axis=1)
    recalls = [float(np.mean(classes[VALIDATION.y == label] == label)) for label in range(3)]
    own = trained.history[0]
    assert own["val_balanced_accuracy"] == pytest.approx(np.mean(recalls))
    # With one-hot columns, R_K is the correlation of the two tables of classes.
    true, found = (np.eye(3)[labels] - np.eye(3)[labels].mean(axis=0) for labels in (VALIDATION.y, classes))
    assert own["val_mcc"] == pytest.approx((true * found).sum() / np.sqrt((true**2).sum() * (found**2).sum()))


@both_engines
def test_balanced_class_weights_find_the_rare_class(engine: EngineBuilder) -> None:
    part = make_part(600, 1)
    rare = np.flatnonzero(part.y == 2)[: len(part) // 40]
    rows = np.sort(np.concatenate([np.flatnonzero(part.y != 2), rare]))
    skewed = DatasetPart.from_rows(part.matrix[rows], part.y[rows])
    recall = {}
    for weights_kind in ("none", "balanced"):
        trainer = make_trainer(epochs=4, class_weights=weights_kind, engine_builder=engine)
        answers = part_outputs(trainer.train(make_network(dropout=0.0), skewed, VALIDATION).model, VALIDATION)
        recall[weights_kind] = float(np.mean(answers.argmax(axis=1)[VALIDATION.y == 2] == 2))
    assert recall["balanced"] > recall["none"] + 0.2


@both_engines
def test_balanced_sampling_shows_each_symbol_equally_often(engine: EngineBuilder) -> None:
    """Symbol 1 has a tenth of the rows and the opposite classes: only balanced sampling lets it be learned."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(660, 6)).astype(np.float32)
    symbol_ids = np.array([0] * 600 + [1] * 60)
    y = np.where(symbol_ids == 0, 0, 2)
    part = DatasetPart.from_rows(X, y, symbol_ids=symbol_ids)
    shares = {}
    for sampling in ("balanced", "proportional"):
        trainer = make_trainer(epochs=3, sampling=sampling, num_symbols=2, engine_builder=engine)
        outputs = part_outputs(trainer.train(make_network(dropout=0.0), part, part).model, part)
        shares[sampling] = float(np.mean(outputs.argmax(axis=1) == 2))
    assert shares["proportional"] < 0.1
    assert 0.25 < shares["balanced"] < 0.75


def lanes_of(counts: list[int], **settings: Any) -> list[Lane]:
    return [
        Lane(
            make_network(seed=index, dropout=0.3),
            make_part(count, 10 + index),
            make_part(50, 20 + index, is_learnable=index != 1),
            make_settings(seed=index, learning_rate=0.01 * (index + 1), **settings),
        )
        for index, count in enumerate(counts)
    ]


@both_engines
def test_lane_is_the_same_alone_and_in_a_stack(engine: EngineBuilder) -> None:
    settings: dict[str, Any] = {
        "epochs": 12,
        "schedule": {"type": "plateau", "factor": 0.5, "every_epochs": 1},
        "early_stopping": {"metric": "val_loss", "patience": 2},
    }
    counts = [200, 130, 90, 17]
    together = make_trainer(engine_builder=engine, seed=0, **settings).train_lanes(lanes_of(counts, **settings))
    for index, lane in enumerate(lanes_of(counts, **settings)):
        own = settings | {"seed": index, "learning_rate": 0.01 * (index + 1)}
        (alone,) = make_trainer(engine_builder=engine, **own).train_lanes([lane])
        assert alone.history == together[index].history
        assert alone.best_epoch == together[index].best_epoch
        assert alone.early_stop_epoch == together[index].early_stop_epoch
        assert weights(alone) == weights(together[index])
    ends = {trained.early_stop_epoch for trained in together}
    assert len(ends) > 1  # lanes end at different epochs


def test_progress_of_a_stack_is_that_of_its_first_lane() -> None:
    lanes = lanes_of([50, 200], epochs=2)
    seen: list[dict[str, Any]] = []
    first, _ = make_trainer(recorder(seen), seed=0, epochs=2).train_lanes(lanes)
    assert {metrics["total_batches_per_epoch"] for metrics in seen} == {4}
    epochs = [metrics for metrics in seen if metrics["progress_type"] == "epoch"]
    assert [metrics["val_loss"] for metrics in epochs] == [metrics["val_loss"] for metrics in first.history]


def test_loss_of_another_lane_that_is_not_finite_fails_and_names_it() -> None:
    lanes = lanes_of([64, 64])
    lanes[1].train.matrix[3, 3] = np.nan
    with pytest.raises(NonFiniteLossError, match=r"the loss of lane 1 became nan at epoch 1, batch \d"):
        make_trainer(seed=0).train_lanes(lanes)


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"epochs": 9}, {"optimizer": "sgd"}], ids=str)
def test_lanes_that_differ_in_more_than_seed_and_learning_rate_are_refused(change: dict[str, Any]) -> None:
    lanes = [*lanes_of([64]), *lanes_of([64], **change)]
    with pytest.raises(InvalidInputError, match="lane 1 has other settings"):
        make_trainer(seed=0).train_lanes(lanes)


def test_stack_without_lanes_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no lane"):
        make_trainer().train_lanes([])


def test_regression_without_targets_is_refused() -> None:
    network = make_network(num_outputs=1, output_activation="linear")
    trainer = make_trainer(output_format="regression", buy_threshold=0.01, sell_threshold=0.01)
    with pytest.raises(InvalidInputError, match="0 targets for 200 rows"):
        trainer.train(network, TRAIN, VALIDATION)


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer"])
def test_windows_of_several_symbols_are_learned(kind: str) -> None:
    spec: dict[str, Any] = {"type": kind, "window_bars": 4, "hidden_layers": (12,)}
    if kind == "transformer":
        spec |= {"d_model": 8, "num_heads": 2}
    part = make_window_part(300, 1, num_symbols=3)
    trainer = make_trainer(epochs=8, learning_rate=0.02, num_symbols=3)
    trained = trainer.train(make_network(**spec), part, make_window_part(90, 2, num_symbols=3))
    assert trained.history[-1]["train_accuracy"] > trained.history[0]["train_accuracy"] + 0.15


def test_resting_first_lane_hears_the_batches_of_the_others_with_its_own_last_metrics() -> None:
    settings: dict[str, Any] = {"epochs": 8, "early_stopping": {"patience": 1, "min_delta": 1e-6}}
    lanes = lanes_of([64, 320, 320], **settings)
    # With nothing to learn from its rate the first lane stops after the second epoch.
    lanes[0] = replace(lanes[0], hyperparameters=replace(lanes[0].hyperparameters, learning_rate=1e-12))
    seen: list[dict[str, Any]] = []
    first, *others = make_trainer(recorder(seen), seed=0, **settings).train_lanes(lanes)
    assert first.early_stop_epoch == 2
    assert max(len(trained.history) for trained in others) > 2
    assert [metrics["epoch"] for metrics in seen if metrics["progress_type"] == "epoch"] == [1, 2]
    resting = [metrics for metrics in seen if metrics["epoch"] > 2]
    assert resting
    for metrics in resting:
        assert metrics["progress_type"] == "batch"
        assert 0 < metrics["batch"] < metrics["total_batches_per_epoch"] == 20
        assert metrics["train_loss"] == first.history[-1]["train_loss"]
