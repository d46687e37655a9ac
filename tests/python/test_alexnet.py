"""AlexNet: its tensors, its arithmetic against TensorFlow's own layers, its recipes and the loop without a server."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distnet.optimizers as optimizers
from distnet.alexnet.network import DECAYED, TENSORS, initial_parameters
from distnet.alexnet.recipes import RECIPES, Recipe
from distnet.data.cifar10 import TrainingData
from distnet.data.generated import generate
from distnet.data.shares import steps_of
from distnet.errors import ConfigError, ManifestMismatch

tf = pytest.importorskip("tensorflow")
network = pytest.importorskip("distnet.alexnet.network_tensorflow")
training = pytest.importorskip("distnet.alexnet.loops")
local = pytest.importorskip("distnet.alexnet.local_optimizer")

UPDATES = 60
ROUNDS = 12  # past the end of an epoch


@pytest.fixture(scope="module")
def data() -> TrainingData:
    train, test = generate(seed=0, train_count=600, test_count=200)
    return TrainingData(
        train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1], name="generated"
    )


def test_it_has_the_tutorials_parameters() -> None:
    parameters = initial_parameters(0)
    assert len(parameters) == 10
    assert sum(array.size for array in parameters.values()) == 1_068_298
    assert [list(TENSORS)[index] for index in DECAYED] == ["dense1/kernel", "dense2/kernel"]


def test_initial_weights_are_truncated_normals_and_depend_on_the_seed() -> None:
    first, again, other = initial_parameters(1), initial_parameters(1), initial_parameters(2)
    for name, spec in TENSORS.items():
        assert first[name].dtype == np.float32
        assert first[name].shape == spec.shape
        assert np.array_equal(first[name], again[name])
        if spec.deviation:
            assert np.abs(first[name]).max() <= 2 * spec.deviation * (1 + 1e-6)
            assert not np.array_equal(first[name], other[name])
            # A normal distribution cut at two deviations keeps 0.88 of its deviation.
            assert first[name].std() == pytest.approx(0.88 * spec.deviation, rel=0.05)
        else:
            assert (first[name] == np.float32(spec.constant)).all()


@pytest.mark.parametrize("shape", [(2, 3, 5, 64), (1, 1, 1, 7), (4, 12, 12, 64)])
def test_local_response_normalization_equals_tensorflows(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    inputs = tf.constant(generator.normal(0, 20, shape).astype(np.float32))
    upstream = tf.constant(generator.normal(0, 1, shape).astype(np.float32))

    def outcome(function: Callable[[Any], Any]) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        return outputs.numpy(), tape.gradient(outputs, inputs, upstream).numpy()

    ours, our_gradient = outcome(network.local_response_normalization)
    expected, expected_gradient = outcome(
        lambda x: tf.nn.local_response_normalization(x, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(our_gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def _plain_loss(variables: Sequence[Any], images: Any, labels: Any) -> tuple[Any, Any]:
    """The tutorial's chain of layers, as the tutorial wrote it."""

    def lrn(x: Any) -> Any:
        return tf.nn.local_response_normalization(x, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)

    hidden = tf.nn.relu(tf.nn.conv2d(images, variables[0], 1, "SAME") + variables[1])
    hidden = lrn(tf.nn.max_pool2d(hidden, 3, 2, "SAME"))
    hidden = lrn(tf.nn.relu(tf.nn.conv2d(hidden, variables[2], 1, "SAME") + variables[3]))
    hidden = tf.reshape(tf.nn.max_pool2d(hidden, 3, 2, "SAME"), [-1, 2304])
    hidden = tf.nn.relu(tf.matmul(hidden, variables[4]) + variables[5])
    hidden = tf.nn.relu(tf.matmul(hidden, variables[6]) + variables[7])
    logits = tf.matmul(hidden, variables[8]) + variables[9]
    entropy = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    return entropy, entropy + 0.004 * (tf.nn.l2_loss(variables[4]) + tf.nn.l2_loss(variables[6]))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.2)])
def test_loss_and_gradients_equal_those_of_the_tutorials_chain(precision: str, tolerance: float) -> None:
    generator = np.random.default_rng(3)
    variables = [tf.Variable(array) for array in initial_parameters(0).values()]
    for variable in variables:  # biases that are not all alike
        variable.assign_add(generator.normal(0, 0.01, variable.shape).astype(np.float32))
    images = tf.constant(generator.standard_normal((16, 24, 24, 3), np.float32))
    labels = tf.constant(generator.integers(0, 10, 16), tf.int32)
    loss, found = network.gradients(variables, images, labels, weight_decay=0.004, precision=precision)
    with tf.GradientTape() as tape:
        entropy, whole = _plain_loss(variables, images, labels)
    assert float(loss) == pytest.approx(float(entropy), rel=max(1e-5, tolerance / 10))
    for gradient, expected in zip(found, tape.gradient(whole, variables), strict=True):
        assert gradient.dtype == tf.float32
        difference = float(tf.norm(gradient - expected) / tf.norm(expected))
        assert difference < tolerance


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("effective_batch", [128, 256])
def test_a_recipes_first_update_has_the_rate_it_states(name: str, effective_batch: int) -> None:
    recipe = RECIPES[name]
    spec = recipe.optimizer(examples=1_000_000, effective_batch=effective_batch).to_spec()
    rates = [local.scheduled_learning_rate(spec["schedule"], update) for update in range(1_000_000 // effective_batch)]
    peak = recipe.learning_rate * effective_batch / 128
    assert max(rates) == pytest.approx(peak)
    assert f"{peak:g}" in recipe.rate_rule(effective_batch=effective_batch)
    if recipe.schedule == "cosine":
        assert rates[0] < 0.01 * peak
        assert rates[-1] < 0.01 * peak
        assert rates.index(max(rates)) == pytest.approx(recipe.warmup * len(rates), abs=2)
    else:
        assert rates[0] == pytest.approx(peak), "the 2017 project's first update was ten times too large"


def test_the_tutorials_rate_falls_after_350_epochs_of_examples() -> None:
    schedule = RECIPES["tutorial"].optimizer(examples=1, effective_batch=128).to_spec()["schedule"]
    fall = round(350 * 50_000 / 128)
    assert local.scheduled_learning_rate(schedule, fall - 1) == pytest.approx(0.1)
    assert local.scheduled_learning_rate(schedule, fall) == pytest.approx(0.01)


def test_a_recipes_clipping_and_momentum_are_its_optimizers() -> None:
    plain = dataclasses.replace(RECIPES["default"], clip_norm=2.0)
    assert plain.optimizer(examples=1000, effective_batch=128).to_spec()["clip_norm"] == 2.0
    spec = (
        dataclasses.replace(plain, momentum=0.9, nesterov=True).optimizer(examples=1000, effective_batch=128).to_spec()
    )
    assert (spec["clip_norm"], spec["settings"]["momentum"], spec["settings"]["nesterov"]) == (2.0, 0.9, 1.0)
    assert RECIPES["momentum"].optimizer(examples=1000, effective_batch=128).to_spec()["clip_norm"] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"ema_decay": -0.1},
        {"clip_norm": -1.0},
        {"clip_norm": math.nan},
        {"contrast": (-0.1, 1.0)},
        {"contrast": (1.2, 0.8)},
    ],
)
def test_a_recipe_without_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(RECIPES["default"], **change)


def test_a_run_shorter_than_its_warmup_has_a_schedule() -> None:
    RECIPES["default"].optimizer(examples=1, effective_batch=128)
    with pytest.raises(ConfigError):
        RECIPES["default"].optimizer(examples=0, effective_batch=128)


SCHEDULES: dict[str, tuple[optimizers.LearningRate, Callable[[int], float]]] = {
    "constant": (0.5, lambda n: 0.5),
    "exponential": (optimizers.ExponentialDecay(1.0, 0.5, 10), lambda n: 0.5 ** (n / 10)),
    "staircase": (optimizers.ExponentialDecay(1.0, 0.5, 10, staircase=True), lambda n: 0.5 ** (n // 10)),
    "piecewise": (
        optimizers.PiecewiseConstant([3, 6], [3.0, 2.0, 1.0]),
        lambda n: 3.0 if n < 3 else 2.0 if n < 6 else 1.0,
    ),
    "cosine": (
        optimizers.CosineDecay(1.0, 20, 0.1),
        lambda n: 0.1 + 0.9 * (1 + math.cos(math.pi * min(n, 20) / 20)) / 2,
    ),
    "warm-up": (optimizers.Warmup(5, 1.0), lambda n: min(n, 5) / 5),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_baselines_schedules_follow_their_formulas(kind: str) -> None:
    rate, formula = SCHEDULES[kind]
    schedule = optimizers.SGD(rate).to_spec()["schedule"]
    for update in range(30):
        assert local.scheduled_learning_rate(schedule, update) == pytest.approx(formula(update))


OPTIMIZERS = [
    *(kind(0.05) for kind in optimizers.OPTIMIZERS.values()),
    optimizers.Momentum(optimizers.Warmup(10, optimizers.CosineDecay(0.1, 40)), nesterov=True, weight_decay=0.1),
    optimizers.RMSProp(0.01, momentum=0.9),
    optimizers.Adagrad(0.1, learning_rate_decay=0.1, initial_accumulator_value=0.5),
    optimizers.SGD(0.1, clip_value=0.5, weight_decay=0.01),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_the_baselines_optimizers_are_the_servers(optimizer: optimizers.Optimizer) -> None:
    distnet = pytest.importorskip("distnet")
    generator = np.random.default_rng(0)
    initial = generator.standard_normal(64).astype(np.float32)
    store = distnet.MutexStore(initial.copy(), optimizer)
    variable = tf.Variable(initial)
    updater = local.LocalOptimizer(optimizer.to_spec(), [variable], ema_decay=0.0)
    out = np.empty_like(initial)
    for update in range(UPDATES):
        gradient = generator.standard_normal(64).astype(np.float32)
        store.apply(gradient)
        updater.apply([tf.constant(gradient)], updater.scalars(update))
    store.read(out)
    np.testing.assert_allclose(variable.numpy(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.Adam(0.1, amsgrad=True),
        optimizers.Momentum(0.1, dampening=0.5),
        optimizers.RMSProp(0.1, centered=True),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_the_baseline_refuses_a_dialect_by_name(optimizer: optimizers.Optimizer) -> None:
    with pytest.raises(ConfigError, match=f"the baseline's {optimizer.name} has no (amsgrad|dampening|centered)"):
        local.LocalOptimizer(optimizer.to_spec(), [tf.Variable([0.0])], ema_decay=0.0)


def test_the_baseline_clips_by_the_norm_of_the_whole_gradient() -> None:
    variables = [tf.Variable([0.0, 0.0]), tf.Variable([0.0])]
    updater = local.LocalOptimizer(optimizers.SGD(1.0, clip_norm=1.0).to_spec(), variables, ema_decay=0.0)
    updater.apply([tf.constant([3.0, 0.0]), tf.constant([4.0])], updater.scalars(0))
    np.testing.assert_allclose(variables[0].numpy(), [-0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(variables[1].numpy(), [-0.8], rtol=1e-6)


def test_the_baselines_ema_has_the_servers_ramp() -> None:
    variable = tf.Variable([0.0])
    updater = local.LocalOptimizer(optimizers.SGD(1.0).to_spec(), [variable], ema_decay=0.9)
    expected, value = 0.0, 0.0
    for update in range(200):
        updater.apply([tf.constant([-1.0])], updater.scalars(update))
        value += 1.0
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    assert float(updater.ema[0][0]) == pytest.approx(expected, rel=1e-5)


SHORT = Recipe(
    name="short",
    summary="",
    batch_size=32,
    epochs=1,
    learning_rate=0.04,
    schedule="cosine",
    momentum=0.9,
    ema_decay=0.5,
)


def test_the_baseline_learns_and_tells_of_each_step(data: TrainingData) -> None:
    records: list[Any] = []
    snapshots: list[Any] = []
    result = training.train_local(
        data=data, recipe=SHORT, steps=40, on_step=records.append, snapshot_steps=15, on_snapshot=snapshots.append
    )
    assert [record.step for record in records] == list(range(1, 41))
    assert records[-1].examples == result.examples == 40 * 32
    assert [record.version for record in records] == list(range(1, 41))
    assert [snapshot.step for snapshot in snapshots] == [15, 30]
    assert np.mean([record.loss for record in records[-10:]]) < np.mean([record.loss for record in records[:10]])
    assert result.ema is not None
    assert list(result.ema) == list(TENSORS)
    assert not np.array_equal(result.ema["linear/kernel"], result.parameters["linear/kernel"])
    assert not np.array_equal(snapshots[0].parameters["linear/bias"], snapshots[1].parameters["linear/bias"])


def test_the_baseline_stops_at_a_loss_that_is_no_number(data: TrainingData) -> None:
    wild = dataclasses.replace(SHORT, learning_rate=1e20, warmup=0.0)
    with pytest.raises(ArithmeticError, match="the loss became"):
        training.train_local(data=data, recipe=wild, steps=50)


def test_a_clipped_baseline_moves_no_further_than_its_clipped_gradients() -> None:
    moved = []
    for clip_norm in (0.0, 1e-3):
        recipe = dataclasses.replace(SHORT, momentum=0.0, warmup=0.0, clip_norm=clip_norm)
        before = initial_parameters(0)
        train, test = generate(seed=0, train_count=64, test_count=64)
        few = TrainingData(
            train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1], name="generated"
        )
        after = training.train_local(data=few, recipe=recipe, steps=2).parameters
        moved.append(math.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before)))
    most = 2 * recipe.peak_learning_rate(effective_batch=32) * 1e-3
    assert moved[1] <= most * 1.01 < moved[0]


def test_evaluation_takes_lists_and_dicts_and_scores_the_asked_for_part(data: TrainingData) -> None:
    parameters = initial_parameters(0)
    by_name = training.evaluate(parameters, data)
    shuffled = {name: parameters[name] for name in reversed(parameters)}
    assert by_name == training.evaluate(list(parameters.values()), data) == training.evaluate(shuffled, data)
    assert by_name.examples == 200
    assert by_name.loss == pytest.approx(math.log(10), rel=0.1)
    assert training.evaluate(parameters, data, examples=50).examples == 50


def test_evaluation_refuses_other_models(data: TrainingData) -> None:
    parameters = initial_parameters(0)
    with pytest.raises(ManifestMismatch):
        training.evaluate(list(parameters.values())[:-1], data)
    with pytest.raises(ManifestMismatch):
        training.evaluate({**parameters, "linear/bias": np.zeros(11, np.float32)}, data)
    with pytest.raises(ManifestMismatch):
        training.evaluate({"other": np.zeros(1, np.float32)}, data)
    with pytest.raises(ConfigError):
        training.evaluate(parameters, data, examples=0)


@pytest.mark.parametrize("semantics", ["sync", "async-sharded"])
def test_workers_divide_the_work_and_count_it_once(semantics: str, data: TrainingData) -> None:
    """Five steps of two workers: neither the odd step nor a counter in session runs may change what is counted."""
    import distnet

    records: list[list[Any]] = [[], []]
    results: list[Any] = []

    def work(rank: int, address: str) -> None:
        with distnet.connect(address, rank=rank, timeout=60.0) as client:
            result = training.train_worker(
                client,
                data=data,
                recipe=SHORT,
                rank=rank,
                workers=2,
                steps=steps_of(5, rank, 2),
                on_step=records[rank].append,
            )
        results.append(result)

    optimizer = SHORT.optimizer(examples=5 * 32, effective_batch=32)
    with distnet.ParameterServer(
        initial_parameters(0), semantics=semantics, optimizer=optimizer, workers=2, ema_decay=SHORT.ema_decay
    ) as server:
        threads = [threading.Thread(target=work, args=(rank, server.address)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = server.stats()
        ema = server.parameters(ema=True)
    assert [[record.step for record in own] for own in records] == [[1, 2, 3], [1, 2]]
    assert sum(result.examples for result in results) == 5 * 32
    assert stats["updates"] == (3 if semantics == "sync" else 5)
    assert training.evaluate(ema, data).examples == 200


def test_a_resumed_round_is_the_one_that_would_have_come(data: TrainingData, tmp_path: Path) -> None:
    """The whole state of two ranks comes back: parameters, schedule, EMA, and each rank's place in its data."""
    import distnet

    def digest(arrays: Any) -> bytes:
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).digest()

    def train(server: distnet.ParameterServer, checkpoint_at: int | None = None) -> tuple[list[Any], bytes]:
        sequence: list[Any] = []

        def work(rank: int) -> None:
            with distnet.connect(server.address, rank=rank, timeout=60.0) as client:

                def stepped(record: Any) -> None:
                    if rank == 0:  # the next round waits for this rank, so these are the parameters of this one
                        sequence.append((record.step, record.version, record.loss, digest(server.parameters())))
                        if record.step == checkpoint_at:
                            server.checkpoint(tmp_path)

                settings = {"data": data, "recipe": SHORT, "rank": rank, "workers": 2, "steps": ROUNDS, "seed": 3}
                training.train_worker(client, **settings, on_step=stepped)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sequence, digest(server.parameters(ema=True))

    optimizer = SHORT.optimizer(examples=2 * ROUNDS * 32, effective_batch=64)
    arguments: dict[str, Any] = {
        "semantics": "sync",
        "optimizer": optimizer,
        "workers": 2,
        "ema_decay": SHORT.ema_decay,
    }
    tf.config.experimental.enable_op_determinism()
    try:
        with distnet.ParameterServer(initial_parameters(3), **arguments) as server:
            uninterrupted, last = train(server, checkpoint_at=4)
        with distnet.ParameterServer(restore=tmp_path, **arguments) as server:
            resumed, last_resumed = train(server)
    finally:
        importlib.import_module("tensorflow.python.framework.config").disable_op_determinism()
    assert [step for step, *_ in resumed] == list(range(5, ROUNDS + 1))
    assert resumed == uninterrupted[4:]
    assert last_resumed == last
