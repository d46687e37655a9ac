"""AlexNet by Keras's fit: the network, the steps and the place in the data of the TensorFlow worker, to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.plan import make_optimizer, make_plan, with_recipe
from distnet.alexnet.network import TENSORS, initial_parameters
from distnet.alexnet.recipes import RECIPES
from distnet.data.cifar10 import TrainingData
from distnet.data.generated import generate
from distnet.errors import ConfigError
from distnet.settings.grammar import as_text

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras computes with another backend here", allow_module_level=True)
network = pytest.importorskip("distnet.alexnet.network_tensorflow")
network_keras = pytest.importorskip("distnet.alexnet.network_keras")
by_fit = pytest.importorskip("distnet.alexnet.fit")
loops = pytest.importorskip("distnet.alexnet.loops")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras with NumPy 2

STEPS, BATCH = 4, 8
CONFIG = TrainConfig(trainer="keras", semantics="sync", workers=1, steps=STEPS, batch_size=BATCH, seed=3)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    train, test = generate(seed=0, train_count=100, test_count=20)
    return TrainingData(
        train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1], name="generated"
    )


@pytest.fixture(autouse=True)
def deterministic() -> None:
    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(1)


def test_it_computes_the_loss_and_the_gradients_of_the_network_to_the_bit() -> None:
    model = network_keras.AlexNet(seed=3, weight_decay=0.004)
    assert [weight.path for weight in model.trainable_variables] == list(TENSORS)
    generator = np.random.default_rng(0)
    images = tf.constant(generator.standard_normal((BATCH, 24, 24, 3), np.float32))
    labels = tf.constant(generator.integers(0, 10, BATCH), tf.int32)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, model(images, training=True))
    found = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    variables = [tf.Variable(array) for array in initial_parameters(3).values()]
    expected_loss, expected = network.gradients(variables, images, labels, weight_decay=0.004)
    assert float(loss) == float(expected_loss)
    for gradient, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(gradient.numpy(), same.numpy())


def _train(config: TrainConfig, data: TrainingData, *, steps: int = STEPS, **server: Any) -> tuple[Any, Any, list[Any]]:
    """Train with one worker; return the result, the server's last snapshot, and what was told of each step."""
    plan = make_plan(config, len(data.train_images))
    recipe, told = RECIPES[config.recipe], list[Any]()
    arguments = {**with_recipe(config, plan).server_arguments(), **server}
    common = {"data": data, "recipe": recipe, "rank": 0, "workers": 1, "steps": steps, "seed": config.seed}
    initial = None if "restore" in server else initial_parameters(config.seed)
    with (
        distnet.ParameterServer(initial, **arguments) as held,
        distnet.connect(held.address, rank=0, timeout=120.0) as client,
    ):
        if config.trainer == "keras":
            optimizer = make_optimizer(config, plan)
            result = by_fit.train_by_fit(client, optimizer=optimizer, batch_size=BATCH, on_step=told.append, **common)
        else:
            result = loops.train_worker(client, batch_size=BATCH, on_step=told.append, **common)
        return result, held.snapshot(), told


@pytest.mark.parametrize(("recipe", "tolerance"), [("default", 0.0), ("nesterov", 1e-6)])
def test_steps_are_those_of_the_tensorflow_worker(recipe: str, tolerance: float, data: TrainingData) -> None:
    """At a rate that stays, as Keras's momentum is a sum of steps; a clipped gradient differs in its last bits."""
    config = dataclasses.replace(CONFIG, recipe=recipe, schedule=None if recipe == "default" else "constant")
    result, snapshot, told = _train(config, data)
    expected, expected_snapshot, expected_told = _train(dataclasses.replace(config, trainer="tensorflow"), data)
    for name in TENSORS:
        np.testing.assert_allclose(result.parameters[name], expected.parameters[name], rtol=0, atol=tolerance)
        np.testing.assert_allclose(snapshot.ema[name], expected_snapshot.ema[name], rtol=0, atol=tolerance)
    assert snapshot.versions == expected_snapshot.versions == (STEPS,)
    assert [record.step for record in told] == [1, 2, 3, 4]
    assert [record.loss for record in told] == pytest.approx([record.loss for record in expected_told], rel=1e-6)
    assert [record.version for record in told] == [record.version for record in expected_told]
    assert all(record.computing_s > 0 and record.exchanging_s > 0 for record in told)
    assert (result.steps, result.examples) == (STEPS, STEPS * BATCH)


def test_a_rank_goes_on_after_its_last_step_in_a_checkpoint(data: TrainingData, tmp_path: Any) -> None:
    whole, _, _ = _train(CONFIG, data)
    _train(CONFIG, data, steps=2, checkpoint=tmp_path / "kept")
    rest, snapshot, told = _train(CONFIG, data, restore=tmp_path / "kept")
    assert [record.step for record in told] == [3, 4]
    assert snapshot.versions == (STEPS,)
    for name in TENSORS:
        np.testing.assert_array_equal(rest.parameters[name], whole.parameters[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"semantics": "local"}, "semantics 'local' has no server"),
        ({"overlap": True}, "overlap goes with the trainer 'tensorflow'"),
        ({"groups": ("*bias*=group(weight_decay=0)",)}, "groups goes with the trainer 'tensorflow'"),
        ({"trainer": "karas"}, "trainer is 'karas'"),
    ],
)
def test_a_setting_that_the_trainer_has_not_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **settings)


@pytest.mark.parametrize("optimizer", ["adam(0.1)", "sgd(0.1, weight_decay=0.1)", "momentum(0.1, dampening=0.5)"])
def test_an_optimizer_that_the_trainer_has_not_is_named(optimizer: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    with pytest.raises(ConfigError, match=r"the trainer 'keras' takes sgd, and momentum .*; got " + optimizer[:3]):
        with_recipe(config, make_plan(config, 100))


def test_in_rounds_all_workers_have_equally_many_steps() -> None:
    config = dataclasses.replace(CONFIG, workers=2, steps=5)
    assert make_plan(config, 100).steps == 4
    assert make_plan(dataclasses.replace(config, semantics="async-apply"), 100).steps == 5
    assert make_plan(dataclasses.replace(config, trainer="tensorflow"), 100).steps == 5


def test_the_servers_have_the_optimizer_as_keras_has_it() -> None:
    config = dataclasses.replace(CONFIG, recipe="nesterov")
    served = with_recipe(config, make_plan(config, 100)).optimizer
    assert served is not None
    assert served == as_text(distnet.Momentum(0.05 * BATCH / 128, 0.9, nesterov=True, velocity_holds_rate=True))
