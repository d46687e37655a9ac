"""What the compiled optimizer becomes behind a server, and what stays as Keras made it; one worker, in this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.errors import ConfigError, ManifestMismatch

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

if keras.backend.backend() != "tensorflow":
    pytest.skip("these look into TensorFlow's graph", allow_module_level=True)

from distnet.keras import distribute  # noqa: E402 - of a Keras that is there
from distnet.keras.routes.tensorflow import TensorFlowRoute  # noqa: E402
from distnet.keras.translation import translated  # noqa: E402
from distnet.keras.variables import Variables  # noqa: E402

# Keras's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

X, Y = np.ones((32, 5), np.float32), np.ones((32, 2), np.float32)
SGD = keras.optimizers.SGD


def make_model(**last: Any) -> Any:
    layers = [keras.Input((5,)), keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="last", **last)]
    return keras.Sequential(layers, name="model")


def make_unbuilt() -> Any:
    return keras.Sequential([keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="last")], name="model")


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One worker's client of a server of the model, by Adam or what the test says."""
    made = getattr(request, "param", keras.optimizers.Adam)()
    said = translated(made, {})
    with (
        distnet.ParameterServer(
            Variables(make_model()).initial(), semantics="sync", workers=1, optimizer=said.optimizer
        ) as server,
        distnet.connect(server.address, rank=0) as connected,
    ):
        yield connected


by_sgd = pytest.mark.parametrize("client", [lambda: SGD(0.1)], indirect=True, ids=["SGD"])


def fitted(model: Any, **how: Any) -> Any:
    model.fit(X, Y, **{"batch_size": 8, "verbose": 0, **how})
    return model


def distributed(client: Any, optimizer: Any = "adam", *, model: Any = None, **compiled: Any) -> Any:
    model = model or make_model()
    model.compile(optimizer, "mse", **compiled)
    return distribute(model, client=client)


def address_of(variable: Any) -> int:
    return int(np.from_dlpack(variable.value.read_value()).ctypes.data)


# ---- what it becomes -----------------------------------------------------------------------------------------------
def test_it_stays_the_same_object_of_its_own_class(client: Any) -> None:
    made = keras.optimizers.Adam()
    model = distributed(client, made)
    assert model.optimizer is made
    assert isinstance(made, keras.optimizers.Adam)
    assert made.__class__ is keras.optimizers.Adam
    assert made.client is client
    assert type(made.__class__.from_config(made.get_config())) is keras.optimizers.Adam


def test_the_state_is_at_the_server_alone(client: Any) -> None:
    model = fitted(distributed(client))
    assert [variable.name for variable in model.optimizer.variables] == ["iteration", "learning_rate"]
    assert int(model.optimizer.iterations) == client.version == 4


def test_state_that_no_step_has_changed_is_dropped(client: Any) -> None:
    model = make_model()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    fitted(distribute(model, client=client))
    assert [variable.name for variable in model.optimizer.variables] == ["iteration", "learning_rate"]
    assert client.version == 4


@by_sgd
def test_an_optimizer_without_state_is_taken_over_with_its_count(client: Any) -> None:
    model = make_model()
    model.compile(SGD(0.1), "mse")
    fitted(distribute(fitted(model), client=client))
    assert (int(model.optimizer.iterations), client.version) == (8, 4)


def test_state_of_steps_before_is_refused_by_its_name(client: Any) -> None:
    model = make_model()
    model.compile("adam", "mse")
    with pytest.raises(ConfigError, match=r"state of 4 steps .* 'adam.*/model_first_kernel_momentum'"):
        distribute(fitted(model), client=client)


def test_a_refusal_leaves_model_and_optimizer_as_they_were(client: Any) -> None:
    model = make_model()
    made = keras.optimizers.Adadelta()
    model.compile(made, "mse")
    with pytest.raises(ConfigError, match="Adadelta has no equal"):
        distribute(model, client=client)
    assert type(made) is keras.optimizers.Adadelta
    assert not {"fit", "compile", "make_train_function"} & set(vars(model))
    fitted(model)


def test_a_model_of_the_server_is_refused_after_its_optimizer_was_taken(client: Any) -> None:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, name="last")], name="model")
    made = keras.optimizers.Adam()
    model.compile(made, "mse")
    with pytest.raises(ManifestMismatch, match="'model/first/kernel', which the server holds"):
        distribute(model, client=client)
    assert type(made) is keras.optimizers.Adam
    fitted(model)


# ---- files ---------------------------------------------------------------------------------------------------------
def test_a_saved_model_loads_where_distnet_is_not(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    model = fitted(distributed(client, keras.optimizers.Adam(0.25)))
    model.save(path)
    config = model.get_compile_config()["optimizer"]
    assert (config["module"], config["class_name"]) == ("keras.optimizers", "Adam")
    script = (
        "import sys, keras, numpy; sys.modules['distnet'] = None; "
        f"model = keras.models.load_model({str(path)!r}); model.fit(numpy.ones((8, 5)), numpy.ones((8, 2)), verbose=0);"
        "print(type(model.optimizer).__name__, float(model.optimizer.learning_rate))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[-1:] == ["Adam 0.25"], done.stderr


# ---- routes --------------------------------------------------------------------------------------------------------
def test_replies_are_the_variables_own_memory(client: Any) -> None:
    model = fitted(distributed(client))
    replica = model._distnet._replica
    assert [address_of(variable) for variable in model._distnet.variables] == [
        array.ctypes.data for array in replica.tensors
    ]
    assert all(array.ctypes.data % 64 == 0 for array in replica.tensors)


def test_what_a_graph_may_still_read_is_not_written_to_by_the_next_exchange(client: Any) -> None:
    model = fitted(distributed(client))
    before = address_of(model.trainable_variables[0])
    model.train_on_batch(X, Y)
    between = address_of(model.trainable_variables[0])
    model.train_on_batch(X, Y)
    assert between != before == address_of(model.trainable_variables[0])


def test_gradients_reach_the_host_as_views(client: Any) -> None:
    model = distributed(client)
    steps, seen = model._distnet.steps, []
    own = steps.exchange

    def exchange(tensors: Any, rate: float) -> Any:
        seen.extend(tensors)
        return own(tensors, rate)

    steps.exchange = exchange
    fitted(model)
    assert len(seen) == 4 * 4
    assert not any(array.flags.owndata for array in seen)


@pytest.mark.parametrize(
    ("compiled", "said"),
    [
        ({}, "inside TensorFlow's graph"),
        ({"jit_compile": True}, "after the compiled step: jit_compile is on"),
        ({"run_eagerly": True}, "inside TensorFlow's graph"),
    ],
    ids=["graph", "XLA", "eager"],
)
def test_the_way_that_is_taken_is_said_once(
    client: Any, compiled: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fitted(fitted(distributed(client, **compiled)))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("distnet: rank 0: gradients")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_compiled_step_hands_gradients_out_without_variables_unless_it_branches(client: Any) -> None:
    route = fitted(distributed(client, jit_compile=True))._distnet.route
    assert isinstance(route, TensorFlowRoute)
    assert route._mailbox is not None
    assert not route._mailbox._through_variables


def test_a_model_keeps_its_own_train_step_and_jit_compile(client: Any) -> None:
    model = fitted(distributed(client, jit_compile=True))
    assert model.jit_compile
    assert "train_step" not in vars(model)


# ---- when it connects ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}], ids=["graph", "XLA"])
def test_a_model_is_built_by_its_first_fit(client: Any, compiled: dict[str, Any]) -> None:
    model = distributed(client, model=make_unbuilt(), **compiled)
    assert model.optimizer.client is None
    fitted(model)
    assert client.version == 4


def test_a_loop_of_ones_own_builds_the_model_at_its_first_step(client: Any) -> None:
    model = distributed(client, model=make_unbuilt())
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    assert client.version == 2


def test_a_loop_that_builds_the_model_within_a_graph_is_told_what_to_do(client: Any) -> None:
    model = distributed(client, model=make_unbuilt())

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    with pytest.raises(Exception, match=r"ConfigError: .* call model\.build\(input_shape\)"):  # in one of TensorFlow
        step()


# ---- what is not the compiled optimizer ----------------------------------------------------------------------------
def test_compiling_again_with_the_same_optimizer_goes_on(client: Any) -> None:
    model = fitted(distributed(client))
    model.compile(model.optimizer, "mae", metrics=["mse"])
    fitted(model)
    assert client.version == 8


def test_compiling_again_with_another_optimizer_is_refused_and_stays_so(client: Any) -> None:
    model = fitted(distributed(client))
    with pytest.raises(ConfigError, match="the model has another optimizer, Adam"):
        model.compile("adam", "mse")
    with pytest.raises(ConfigError, match="the model has another optimizer, Adam"):
        fitted(model)


class _StepsElsewhere(keras.Sequential):  # type: ignore[misc,name-defined]
    def train_step(self, data: Any) -> Any:
        return {"loss": tf.reduce_sum(data[0])}


def test_a_train_step_with_another_optimizer_is_told(client: Any) -> None:
    layers = [keras.Input((5,)), keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="last")]
    model = distributed(client, model=_StepsElsewhere(layers, name="model"))
    with pytest.raises(ConfigError, match="the compiled optimizer has not made a step"):
        fitted(model)


def test_layers_that_are_frozen_later_are_named(client: Any) -> None:
    model = fitted(distributed(client))
    model.layers[0].trainable = False
    with pytest.raises(ConfigError, match="model/first/kernel"):
        fitted(model)


def test_a_strategy_of_tensorflow_is_refused(client: Any) -> None:
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = make_model()
    model.compile("adam", "mse")
    with pytest.raises(ConfigError, match=r"tf\.distribute"):
        distribute(model, client=client)
