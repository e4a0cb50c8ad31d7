"""The stack against the plainest code there is, and against itself alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.errors import InvalidInputError, KtrdrError, UnsupportedError
from ktrdr_core.models.dropout import derive_seed, draw_kept
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.losses import balanced_class_weights
from ktrdr_core.training.stack_engine import StackEngine, find_obstacle, warm_up
from ktrdr_core.training.stack_kernel import evaluate_block, train_batch

FEATURES = 6
BATCH = 16
EPOCHS = 10
HIDDEN = (9, 5)
RATE = 0.25

MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


def make_part(num_rows: int, seed: int) -> DatasetPart:
    """Return rows out of the order of their matrix, so that positions matter."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(2 * num_rows, FEATURES)).astype(np.float32)
    rows = np.sort(rng.choice(2 * num_rows, size=num_rows, replace=False))
    score = matrix[rows] @ rng.normal(size=FEATURES) + rng.normal(size=num_rows)
    return DatasetPart(
        matrix=matrix,
        rows=rows,
        y=np.digitize(score, [-2.0, 0.5]).astype(np.int64),
        times=rows,
        symbol_ids=np.zeros(num_rows, dtype=np.int64),
        targets=score.astype(np.float32),
    )


def make_lane(
    seed: int = 1,
    *,
    num_rows: int = 150,
    hidden: tuple[int, ...] = HIDDEN,
    activation: str = "relu",
    dropout: float = RATE,
    **settings: Any,
) -> Lane:
    is_regression = settings.get("output_format") == "regression"
    spec = NetworkSpec(
        type="mlp",
        input_size=FEATURES,
        hidden_layers=hidden,
        activation=activation,
        dropout=dropout,
        num_outputs=1 if is_regression else 3,
        output_activation=settings.get("output_activation", "softmax"),
    )
    chosen = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.01, "seed": seed} | settings
    return Lane(
        build_network(spec, seed=seed),
        make_part(num_rows, seed),
        make_part(40, seed + 1_000),
        Hyperparameters(**chosen),
    )


REGRESSION: dict[str, Any] = {
    "output_format": "regression",
    "output_activation": "linear",
    "buy_threshold": 0.5,
    "sell_threshold": 0.7,
}


def order_of(lane: Lane, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([lane.hyperparameters.seed, epoch]).permutation(len(lane.train))


def rates(lanes: Sequence[Lane], epoch: int = 0) -> list[float]:
    return [lane.hyperparameters.learning_rate / (1 + epoch) for lane in lanes]


def run_epoch(engine: StackEngine, lanes: Sequence[Lane], epoch: int) -> None:
    engine.begin_epoch([order_of(lane, epoch) for lane in lanes])
    for _ in range(-(-max(len(lane.train) for lane in lanes) // lanes[0].hyperparameters.batch_size)):
        engine.step(rates(lanes, epoch))


def no_check() -> None:
    """Never end early."""


def plain_loss(lane: Lane) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return loss(outputs, classes, targets) straight from the definitions."""
    settings = lane.hyperparameters
    weights = torch.ones(3, dtype=torch.float64)
    if settings.class_weights == "balanced":
        weights = torch.tensor(balanced_class_weights(lane.train.y))

    def classification(outputs: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        if settings.output_activation == "sigmoid":
            judged = functional.binary_cross_entropy(
                torch.sigmoid(outputs), functional.one_hot(y, 3).double(), reduction="none"
            )
            return (judged.mean(dim=1) * weights[y]).sum() / weights[y].sum()
        p = torch.softmax(outputs, dim=1)[torch.arange(len(y)), y]
        if settings.loss == "focal":
            return (weights[y] * (1 - p) ** settings.focal_gamma * -torch.log(p)).mean()
        return (weights[y] * -torch.log(p)).sum() / weights[y].sum()

    def regression(outputs: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        errors = outputs[:, 0] - targets
        if settings.loss == "huber":
            return torch.where(errors.abs() <= 1, 0.5 * errors**2, errors.abs() - 0.5).mean()
        return (errors**2).mean()

    return regression if settings.output_format == "regression" else classification


def plain_optimizer(lane: Lane, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    settings = lane.hyperparameters
    decay: dict[str, Any] = {} if settings.weight_decay is None else {"weight_decay": settings.weight_decay}
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, **decay)
        case "adamw":
            return torch.optim.AdamW(parameters, **decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, **decay)
        case _:
            return torch.optim.SGD(parameters, lr=0.1, momentum=settings.momentum, **decay)


class Plain:
    """The same training in float64: nn.Module, autograd, torch.optim; only the masks' bits are the project's."""

    def __init__(self, lane: Lane) -> None:
        spec = lane.model.spec
        widths = (spec.input_size, *spec.hidden_layers, spec.num_outputs)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths)).double()
        self.load(lane)
        self.activation = MODULES[spec.activation]()
        self.lane, self.rate, self.seed = lane, spec.dropout, lane.hyperparameters.seed
        self.loss = plain_loss(lane)
        self.optimizer = plain_optimizer(lane, list(self.layers.parameters()))
        self.rows_seen = 0
        self.losses: list[float] = []
        self.hits = 0

    def load(self, lane: Lane) -> None:
        with torch.no_grad():
            for name, tensor in lane.model.state_dict().items():
                self.layers.get_parameter(name.removeprefix("layers.")).copy_(tensor)

    def forward(self, x: Tensor, *, is_training: bool) -> Tensor:
        *hidden, last = self.layers
        for index, layer in enumerate(hidden):
            x = self.activation(layer(x))
            if is_training and self.rate > 0:
                rows = torch.arange(self.rows_seen, self.rows_seen + len(x))
                x = x * draw_kept(derive_seed(self.seed, 1 + index), rows, x.shape[1], self.rate) / (1 - self.rate)
        outputs: Tensor = last(x)
        return outputs

    def run_epoch(self, epoch: int) -> None:
        train, settings = self.lane.train, self.lane.hyperparameters
        self.losses, self.hits = [], 0
        self.optimizer.param_groups[0]["lr"] = rates([self.lane], epoch)[0]
        for batch in torch.split(torch.from_numpy(order_of(self.lane, epoch)), settings.batch_size):
            x = torch.from_numpy(train.X)[batch].double()
            y, targets = torch.from_numpy(train.y)[batch], torch.from_numpy(train.targets)[batch].double()
            outputs = self.forward(x, is_training=True)
            loss = self.loss(outputs, y, targets)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.gradient_clip_norm is not None:
                nn.utils.clip_grad_norm_(self.layers.parameters(), settings.gradient_clip_norm)
            self.optimizer.step()
            self.rows_seen += len(batch)
            self.losses.append(loss.item())
            self.hits += int((self.answers(outputs) == y).sum())

    def answers(self, outputs: Tensor) -> Tensor:
        if outputs.shape[1] > 1:
            return outputs.argmax(dim=1)
        settings, value = self.lane.hyperparameters, outputs[:, 0]
        assert settings.buy_threshold is not None
        assert settings.sell_threshold is not None
        return torch.where(value >= settings.buy_threshold, 0, torch.where(value <= -settings.sell_threshold, 2, 1))


CASES: dict[str, dict[str, Any]] = {
    **{activation: {"activation": activation} for activation in MODULES},
    "no dropout": {"dropout": 0.0},
    "no hidden layer": {"hidden": (), "dropout": 0.0},
    "odd widths": {"hidden": (1, 17, 33, 2)},
    "batch larger than the part": {"batch_size": 700},
    "one row a batch": {"batch_size": 1, "num_rows": 40},
    "class weights": {"class_weights": "balanced"},
    "focal": {"loss": "focal", "activation": "tanh"},
    "focal with weights, gamma below 1": {"loss": "focal", "focal_gamma": 0.5, "class_weights": "balanced"},
    "one against the rest": {"output_activation": "sigmoid", "class_weights": "balanced"},
    "mse": REGRESSION,
    "huber": {**REGRESSION, "loss": "huber", "activation": "silu"},
    "adam with decay": {"weight_decay": 0.05},
    "adamw": {"optimizer": "adamw"},
    "adamw with decay": {"optimizer": "adamw", "weight_decay": 0.3},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "sgd with momentum and decay": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.05},
    "rmsprop": {"optimizer": "rmsprop", "weight_decay": 0.01},
    "clipped": {"gradient_clip_norm": 0.2},
    "clipped, never reached": {"gradient_clip_norm": 1e6, "optimizer": "sgd"},
}


@pytest.mark.parametrize("case", CASES)
def test_ten_epochs_in_float64_equal_autograd_and_torch_optim(case: str) -> None:
    lane = make_lane(**CASES[case])
    engine, plain = StackEngine([lane], dtype="float64"), Plain(lane)
    start = engine.weights(0)
    for epoch in range(EPOCHS):
        run_epoch(engine, [lane], epoch)
        plain.run_epoch(epoch)
        losses, hits = engine.epoch_totals(0)
        np.testing.assert_allclose(losses, plain.losses, rtol=0, atol=1e-10)
        assert hits == plain.hits
    for name, tensor in engine.weights(0).items():
        expected = plain.layers.get_parameter(name.removeprefix("layers.")).detach()
        assert float((tensor - expected).abs().max()) < 1e-10
        assert float((tensor - start[name]).abs().max()) > 1e-3
    with torch.no_grad():
        expected = plain.forward(torch.from_numpy(lane.validation.X).double(), is_training=False)
    np.testing.assert_allclose(engine.validation_outputs(0, no_check), expected.float(), rtol=1e-6, atol=1e-7)


def bits_of(engine: StackEngine, lane: int) -> list[bytes]:
    """Return everything a lane has computed."""
    losses, hits = engine.epoch_totals(lane)
    tensors = [*engine.weights(lane).values(), *engine.state(lane).values()]
    outputs = engine.validation_outputs(lane, no_check)
    return [losses.tobytes(), str(hits).encode(), outputs.tobytes(), *(tensor.numpy().tobytes() for tensor in tensors)]


def various_lanes(count: int) -> list[Lane]:
    """Return lanes with rows, seeds and learning rates of their own."""
    return [
        make_lane(seed, num_rows=40 + 13 * (seed % 7), learning_rate=0.002 * (1 + seed % 5), class_weights="balanced")
        for seed in range(count)
    ]


@pytest.mark.parametrize("count", [2, 7, 64])
def test_lane_is_bit_identical_alone_and_in_any_stack_and_place(count: int) -> None:
    lanes = various_lanes(count)
    stacked = StackEngine(lanes)
    turned = StackEngine(lanes[::-1])
    for epoch in range(3):
        run_epoch(stacked, lanes, epoch)
        run_epoch(turned, lanes[::-1], epoch)
    for place in {0, 1, count // 2, count - 1}:
        alone = StackEngine([lanes[place]])
        for epoch in range(3):
            run_epoch(alone, [lanes[place]], epoch)
        assert bits_of(stacked, place) == bits_of(alone, 0)
        assert bits_of(turned, count - 1 - place) == bits_of(alone, 0)


def test_lane_is_bit_identical_beside_one_that_needs_more_room() -> None:
    small, large = make_lane(1, num_rows=50, batch_size=2_000), make_lane(2, num_rows=900, batch_size=2_000)
    together, alone = StackEngine([small, large]), StackEngine([small])
    for epoch in range(2):
        run_epoch(together, [small, large], epoch)
        run_epoch(alone, [small], epoch)
    assert bits_of(together, 0) == bits_of(alone, 0)


def test_lanes_with_other_seeds_or_rates_learn_otherwise() -> None:
    lanes = [make_lane(1), make_lane(2), make_lane(1, learning_rate=0.02)]
    engine = StackEngine(lanes)
    run_epoch(engine, lanes, 0)
    assert len({engine.weights(lane)["layers.0.weight"].numpy().tobytes() for lane in range(3)}) == 3


def test_resting_lane_stays_as_it_is() -> None:
    lanes = various_lanes(2)
    engine = StackEngine(lanes)
    run_epoch(engine, lanes, 0)
    weights, state = engine.weights(1), engine.state(1)
    engine.begin_epoch([order_of(lanes[0], 1), None])
    for _ in range(5):
        engine.step(rates(lanes))
    assert all(torch.equal(engine.weights(1)[name], tensor) for name, tensor in weights.items())
    assert all(torch.equal(engine.state(1)[name], tensor) for name, tensor in state.items())
    assert len(engine.epoch_totals(1)[0]) == 0
    assert engine.epoch_totals(1)[1] == 0


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("batches", [0, 1, 4])
def test_restored_state_goes_on_bit_for_bit(optimizer: str, batches: int) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "momentum": 0.9 if optimizer == "sgd" else 0.0}
    lanes = [make_lane(3, num_rows=70, **settings), make_lane(4, **settings)]
    through, learning_rates = StackEngine(lanes), rates(lanes)
    orders = [order_of(lane, 0) for lane in lanes]
    through.begin_epoch(orders)
    for _ in range(batches):
        through.step(learning_rates)
    kept = [(through.weights(lane), through.state(lane)) for lane in range(2)]
    before = [through.epoch_totals(lane) for lane in range(2)]

    resumed = StackEngine([make_lane(3, num_rows=70, **settings), make_lane(4, **settings)])
    for lane, (weights, state) in enumerate(kept):
        resumed.restore(lane, weights, state)
    resumed.begin_epoch(orders, first_batch=batches)
    for _ in range(10 - batches):
        through.step(learning_rates)
        resumed.step(learning_rates)
    for lane in range(2):
        losses, hits = through.epoch_totals(lane)
        first_losses, first_hits = before[lane]
        later_losses, later_hits = resumed.epoch_totals(lane)
        np.testing.assert_array_equal(losses, np.concatenate([first_losses, later_losses]))
        assert hits == first_hits + later_hits
        assert bits_of(resumed, lane)[2:] == bits_of(through, lane)[2:]


def test_nothing_is_compiled_anew_for_other_kinds_of_arrays() -> None:
    warm_up()
    known = len(train_batch.signatures), len(evaluate_block.signatures)  # type: ignore[attr-defined]
    lane, plain = make_lane(), make_lane()
    for values in (lane.train.matrix, lane.train.rows):
        values.flags.writeable = False
    strided = replace(lane.train, y=np.repeat(lane.train.y, 2)[::2], targets=np.array(0.5, dtype=np.float32).repeat(0))
    lanes = [Lane(lane.model, strided, lane.validation, lane.hyperparameters), plain]
    engine = StackEngine(lanes)
    run_epoch(engine, lanes, 0)
    engine.begin_epoch([order_of(lane, 1)] * 2)
    engine.step([1, np.float32(1.0)])  # type: ignore[list-item]
    assert bits_of(engine, 0) == bits_of(engine, 1)
    assert (len(train_batch.signatures), len(evaluate_block.signatures)) == known  # type: ignore[attr-defined]


def test_totals_are_of_the_batches_of_this_epoch_that_a_lane_had() -> None:
    lanes = [make_lane(3, num_rows=33), make_lane(4, num_rows=100)]
    engine = StackEngine(lanes)
    for epoch in range(2):
        run_epoch(engine, lanes, epoch)
        assert [len(engine.epoch_totals(lane)[0]) for lane in range(2)] == [3, 7]
    assert int(engine.state(0)["steps"]) == 6
    assert int(engine.state(0)["dropout_rows"]) == 66


def test_rows_may_be_seen_more_often_than_once() -> None:
    lane = make_lane(num_rows=20, batch_size=64)
    engine = StackEngine([lane])
    engine.begin_epoch([np.arange(100) % 20])
    engine.step([0.01])
    engine.step([0.01])
    assert len(engine.epoch_totals(0)[0]) == 2
    assert int(engine.state(0)["dropout_rows"]) == 100


def test_what_is_handed_out_is_a_copy() -> None:
    lane = make_lane()
    engine = StackEngine([lane])
    weights, state = engine.weights(0), engine.state(0)
    initial = {name: tensor.clone() for name, tensor in lane.model.state_dict().items()}
    run_epoch(engine, [lane], 0)
    assert all(torch.equal(weights[name], tensor) for name, tensor in initial.items())
    assert all(torch.equal(lane.model.state_dict()[name], tensor) for name, tensor in initial.items())
    assert not state["first_moment"].any()
    assert engine.state(0)["first_moment"].any()


def test_validation_asks_before_each_block_and_ends_when_told() -> None:
    lane = Lane(make_lane().model, make_part(40, 1), make_part(1_100, 2), make_lane().hyperparameters)
    asked: list[int] = []
    engine = StackEngine([lane])
    outputs = engine.validation_outputs(0, lambda: asked.append(1))
    assert len(asked) == 3
    with torch.no_grad():
        expected = lane.model.eval()(torch.from_numpy(lane.validation.X))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)

    def refuse() -> None:
        raise KtrdrError("enough")

    with pytest.raises(KtrdrError, match="enough"):
        engine.validation_outputs(0, refuse)


def test_infinite_learning_rate_shows_in_the_losses() -> None:
    lane = make_lane(optimizer="sgd", learning_rate=1e30)
    engine = StackEngine([lane])
    run_epoch(engine, [lane], 0)
    assert not np.isfinite(engine.epoch_totals(0)[0]).all()


@pytest.mark.parametrize(
    ("lanes", "reason"),
    [
        ([make_lane(1), make_lane(2, batch_size=8)], "differ"),
        ([make_lane(1), make_lane(2, hidden=(4,))], "differ"),
        ([make_lane(1), make_lane(2, optimizer="sgd")], "differ"),
    ],
)
def test_lanes_that_do_not_fit_together_are_refused(lanes: list[Lane], reason: str) -> None:
    assert reason in str(find_obstacle(lanes))
    with pytest.raises(UnsupportedError, match=f"{reason}.*eager"):
        StackEngine(lanes)


def test_network_with_a_symbol_embedding_is_refused() -> None:
    spec = NetworkSpec(type="mlp", input_size=FEATURES, hidden_layers=(4,), num_symbols=2, symbol_embedding_dim=3)
    lane = make_lane()
    embedding = Lane(build_network(spec, seed=1), lane.train, lane.validation, lane.hyperparameters)
    with pytest.raises(UnsupportedError, match="symbol embedding"):
        StackEngine([embedding])


def test_empty_stack_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one lane"):
        StackEngine([])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": np.array([0, 300])}, "rows must be in"),
        ({"rows": np.array([-1, 3])}, "rows must be in"),
        ({"y": np.array([0, 3])}, "needs a class"),
        ({"y": np.array([-1, 1])}, "needs a class"),
        ({"y": np.array([1])}, "needs a class"),
        ({"targets": np.empty(0, dtype=np.float32)}, "needs a target"),
        ({"matrix": np.zeros((300, FEATURES + 1), dtype=np.float32)}, "reads rows of 6 features"),
    ],
)
def test_rows_that_would_be_read_beyond_an_array_are_refused(changes: dict[str, Any], reason: str) -> None:
    lane = make_lane(**REGRESSION)
    two = replace(lane.train, rows=np.array([0, 1]), y=np.array([0, 1]), targets=np.zeros(2, dtype=np.float32))
    for parts in ((replace(two, **changes), two), (two, replace(two, **changes))):
        with pytest.raises(InvalidInputError, match=reason):
            StackEngine([Lane(lane.model, *parts, lane.hyperparameters)])


@pytest.mark.parametrize("position", [-1, 150])
def test_order_of_rows_that_are_not_there_is_refused(position: int) -> None:
    engine = StackEngine([make_lane()])
    with pytest.raises(InvalidInputError, match="rows 0 to 149"):
        engine.begin_epoch([np.array([0, position])])
