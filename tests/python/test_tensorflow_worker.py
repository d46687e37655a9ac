"""The TensorFlow worker: gradients out, parameters in, one device, and nothing shared that should not be."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from distnet.errors import ConfigError, DistNetError, ManifestMismatch, NonFiniteGradient, RoundAborted
from distnet.semantics import SEMANTICS

tf = pytest.importorskip("tensorflow")
framework = pytest.importorskip("distnet.tensorflow")
TensorFlowWorker = framework.TensorFlowWorker

RATE = 0.5


class PlainClient:
    """Plain SGD behind the interface of a client, in this process: what a worker does can be seen from here.

    A push is applied when it begins; up to two may be under way, and replies come in order.
    """

    def __init__(self, parameters: Any, *, rank: int = 0) -> None:
        self.rank, self.version, self.staleness = rank, 0, 0
        self._dict = isinstance(parameters, dict)
        self.parameters = [np.array(v) for v in (parameters.values() if self._dict else parameters)]
        self._names = list(parameters) if self._dict else None
        self.gradients: list[list[np.ndarray]] = []
        self.outputs: list[list[np.ndarray]] = []
        self.bases: list[int] = []  # what a real client tells as the version that a gradient was computed from
        self._waiting: list[list[np.ndarray]] = []

    def _structured(self, values: list[np.ndarray]) -> Any:
        return dict(zip(self._names, values, strict=True)) if self._names else values

    def pull(self, *, out: Any = None) -> Any:
        if out is not None:
            for target, parameter in zip(out.values() if self._names else out, self.parameters, strict=True):
                np.copyto(target, parameter)
            return out
        return self._structured(self.parameters)

    def push_pull(self, gradients: Any, *, out: Any = None) -> Any:
        return self.begin_push_pull(gradients).wait(out=out)

    def begin_push_pull(self, gradients: Any) -> Any:
        if self._names:
            assert list(gradients) == self._names
            gradients = list(gradients.values())
        self.gradients.append([np.array(gradient) for gradient in gradients])
        self.bases.append(self.version)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            assert gradient.dtype == np.float32
            parameter -= np.float32(RATE) * gradient
        self._waiting.append([np.array(parameter) for parameter in self.parameters])
        assert len(self._waiting) <= 2
        return PlainHandle(self, len(self.gradients))

    def receive(self, number: int, out: Any) -> Any:
        reply = self._waiting.pop(0)
        self.version += 1
        assert number == self.version, "replies come in the order of the pushes"
        self.outputs.append(list(out.values()) if self._names else out)
        for target, parameter in zip(self.outputs[-1], reply, strict=True):
            np.copyto(target, parameter)
        return out


class PlainHandle:
    def __init__(self, client: PlainClient, number: int) -> None:
        self._client, self._number = client, number

    def wait(self, *, out: Any = None) -> Any:
        return self._client.receive(self._number, out)


def _linear() -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """Two variables, and the mean squared error of ``x w + b``."""
    variables = [tf.Variable(tf.zeros([3, 1]), name="w"), tf.Variable(tf.zeros([1]), name="b")]

    def loss(model: Any, batch: Any) -> Any:
        inputs, targets = batch
        return tf.reduce_mean((tf.matmul(inputs, model[0]) + model[1] - targets) ** 2)

    return variables, loss


def _batch(seed: int = 0, *, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((count, 3), np.float32)
    return inputs, (inputs @ np.array([[1.0], [-2.0], [0.5]], np.float32) + np.float32(0.25)).astype(np.float32)


def _gradient(parameters: list[np.ndarray], batch: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    inputs, targets = batch
    error = inputs @ parameters[0] + parameters[1] - targets
    return [2 * inputs.T @ error / len(inputs), 2 * error.mean(axis=0)]


def _zeros() -> list[np.ndarray]:
    return [np.zeros((3, 1), np.float32), np.zeros(1, np.float32)]


def test_each_step_pushes_the_gradient_of_the_replica_and_takes_the_reply() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())
    expected = _zeros()
    with TensorFlowWorker(variables, client, loss=loss) as worker:
        for step in range(5):
            gradient = _gradient(expected, _batch(step))
            metrics = worker.step(_batch(step))
            for pushed, wanted, parameter in zip(client.gradients[-1], gradient, expected, strict=True):
                np.testing.assert_allclose(pushed, wanted, rtol=1e-4, atol=1e-5)
                parameter -= np.float32(RATE) * pushed
            for variable, parameter in zip(variables, client.parameters, strict=True):
                assert np.array_equal(variable.numpy(), parameter)
            assert metrics.version == step + 1
            assert metrics.computing_s > 0
    assert metrics.loss < 1.0


def test_a_model_begins_with_the_servers_parameters_not_with_its_own() -> None:
    variables, loss = _linear()
    with TensorFlowWorker(variables, PlainClient([np.full((3, 1), 7, np.float32), np.ones(1, np.float32)]), loss=loss):
        assert variables[0].numpy().tolist() == [[7.0]] * 3


def test_a_worker_pulls_what_others_have_trained() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())
    with TensorFlowWorker(variables, client, loss=loss) as worker:
        client.parameters[0] += 5
        worker.pull()
        assert variables[0].numpy().tolist() == [[5.0]] * 3
        assert client.gradients == []


def test_named_parameters_keep_their_names_and_order() -> None:
    variables, loss = _linear()
    client = PlainClient(dict(zip(("layer/weights", "layer/bias"), _zeros(), strict=True)))
    with TensorFlowWorker(variables, client, loss=loss) as worker:
        worker.step(_batch())
    assert np.array_equal(variables[1].numpy(), client.parameters[1])


def test_replies_arrive_in_the_memory_of_the_variables() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())
    with TensorFlowWorker(variables, client, loss=loss) as worker:
        worker.step(_batch())
        for variable, out in zip(variables, client.outputs[-1], strict=True):
            assert out.ctypes.data % 64 == 0, "TensorFlow aborts the process on other memory"
            assert np.from_dlpack(variable.read_value()).ctypes.data == out.ctypes.data


def test_what_a_user_assigns_neither_reaches_the_replicas_memory_nor_stays() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())
    with TensorFlowWorker(variables, client, loss=loss) as worker:
        worker.step(_batch(0))
        before = [np.array(out) for out in client.outputs[-1]]
        for variable in variables:
            variable.assign_add(tf.ones(variable.shape))
        assert all(np.array_equal(out, old) for out, old in zip(client.outputs[-1], before, strict=True))
        worker.step(_batch(1))
        assert np.array_equal(variables[0].numpy(), client.parameters[0])


def test_a_model_outlives_its_worker() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())
    worker = TensorFlowWorker(variables, client, loss=loss)
    worker.step(_batch())
    worker.close()
    del worker
    variables[0].assign_add(tf.ones([3, 1]))
    np.testing.assert_allclose(variables[0].numpy(), client.parameters[0] + 1)


def test_a_step_function_brings_its_own_gradients() -> None:
    variables, _ = _linear()
    client = PlainClient(_zeros())

    def step(batch: Any) -> Any:
        return tf.reduce_sum(batch), [tf.ones([3, 1], tf.float64), 2.0 * tf.ones([1], tf.float16)]

    with TensorFlowWorker(variables, client, step=step) as worker:
        assert worker.step(tf.constant([1.0, 2.0])).loss == 3.0
    assert client.gradients[0][0].tolist() == [[1.0]] * 3
    assert client.gradients[0][1].tolist() == [2.0]


def test_sparse_gradients_arrive_dense() -> None:
    table = tf.Variable(tf.zeros([5, 2]), name="table")
    client = PlainClient([np.zeros((5, 2), np.float32)])

    def loss(model: Any, batch: Any) -> Any:
        return tf.reduce_sum(tf.gather(model[0], batch))

    with TensorFlowWorker([table], client, loss=loss) as worker:
        worker.step(tf.constant([1, 3, 3]))
    assert client.gradients[0][0].tolist() == [[0, 0], [1, 1], [0, 0], [2, 2], [0, 0]]


def test_a_variable_that_the_loss_ignores_is_named() -> None:
    variables, _ = _linear()
    with (
        TensorFlowWorker(variables, PlainClient(_zeros()), loss=lambda model, _: tf.reduce_sum(model[0])) as worker,
        pytest.raises(ConfigError, match=r"variable b:0 has no gradient"),
    ):
        worker.step(tf.constant(0.0))


@pytest.mark.parametrize("gradients", [[(3, 1)], [(1, 3), (1,)]], ids=["too few", "another shape"])
def test_gradients_that_do_not_fit_are_refused_before_anything_is_sent(gradients: list[tuple[int, ...]]) -> None:
    variables, _ = _linear()
    client = PlainClient(_zeros())

    def step(batch: Any) -> Any:
        return tf.reduce_sum(batch), [tf.zeros(shape) for shape in gradients]

    with TensorFlowWorker(variables, client, step=step) as worker, pytest.raises(ConfigError, match="gradient"):
        worker.step(tf.constant(0.0))
    assert client.gradients == []


def test_another_model_than_the_servers_is_refused() -> None:
    variables, loss = _linear()
    with pytest.raises(ManifestMismatch, match="holds 1 tensors, the model 2"):
        TensorFlowWorker(variables, PlainClient(_zeros()[:1]), loss=loss)
    with pytest.raises(ManifestMismatch, match=r"shape \(1, 3\)"):
        TensorFlowWorker(variables, PlainClient([np.zeros((1, 3), np.float32), np.zeros(1, np.float32)]), loss=loss)


@pytest.mark.parametrize("variable", [((2,), "float64"), ((2,), "float16"), ((0, 2), "float32")])
def test_variables_that_a_server_cannot_hold_are_refused(variable: tuple[tuple[int, ...], str]) -> None:
    shape, kind = variable
    tensor = tf.Variable(tf.zeros(shape, kind), name="odd")
    with pytest.raises(ConfigError, match="variable odd:0"):
        TensorFlowWorker([tensor], PlainClient([np.zeros(shape, np.float32)]), loss=lambda model, _: 0.0)


def test_loss_and_step_exclude_each_other() -> None:
    variables, loss = _linear()
    for options in ({}, {"loss": loss, "step": lambda batch: batch}):
        with pytest.raises(ConfigError, match="either loss= or step="):
            TensorFlowWorker(variables, PlainClient(_zeros()), **options)
    with pytest.raises(ConfigError, match="no trainable variables"):
        TensorFlowWorker([], PlainClient([]), loss=loss)


def _keras_model() -> Any:
    keras = tf.keras
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )


def _initial(model: Any) -> list[np.ndarray]:
    return [np.array(variable.numpy()) for variable in model.trainable_variables]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_keras_model_trains_with_a_keras_loss(by_name: bool) -> None:
    model = _keras_model()
    client = PlainClient(_initial(model))
    loss: Any = "sparse_categorical_crossentropy"
    if not by_name:
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inputs = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int32)
    if by_name:
        model.add(tf.keras.layers.Softmax())
    statistics = [np.array(variable.numpy()) for variable in model.non_trainable_variables]
    with TensorFlowWorker(model, client, loss=loss) as worker:
        losses = [worker.step((inputs, labels)).loss for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert len(client.gradients[0]) == 6, "statistics of batch normalisation stay with the worker"
    after = [variable.numpy() for variable in model.non_trainable_variables]
    assert any(not np.array_equal(old, new) for old, new in zip(statistics, after, strict=True))
    for weight, parameter in zip(model.trainable_variables, client.parameters, strict=True):
        assert np.array_equal(weight.numpy(), parameter)


def test_a_keras_models_penalties_belong_to_its_loss() -> None:
    model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1, kernel_regularizer="l2")])
    client = PlainClient([np.full((1, 1), 3, np.float32), np.zeros(1, np.float32)])
    with TensorFlowWorker(model, client, loss="mean_squared_error") as worker:
        metrics = worker.step((np.ones((4, 1), np.float32), np.full((4, 1), 3, np.float32)))
    assert metrics.loss == pytest.approx(0.01 * 9)
    assert client.gradients[0][0][0, 0] == pytest.approx(0.01 * 2 * 3)


def test_overlap_computes_from_parameters_one_step_older_and_tells_their_version() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())
    history = [_zeros()]
    with TensorFlowWorker(variables, client, loss=loss, overlap=True) as worker:
        for step in range(6):
            worker.step(_batch(step))
            used = history[max(0, step - 1)]
            for pushed, wanted in zip(client.gradients[step], _gradient(used, _batch(step)), strict=True):
                np.testing.assert_allclose(pushed, wanted, rtol=1e-4, atol=1e-5)
            assert client.bases[step] == max(0, step - 1)
            for variable, expected in zip(variables, history[step], strict=True):
                np.testing.assert_array_equal(variable.numpy(), expected)
            history.append([np.array(parameter) for parameter in client.parameters])
    for variable, expected in zip(variables, history[-1], strict=True):
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_a_failed_exchange_leaves_the_last_parameters_and_closes() -> None:
    variables, loss = _linear()
    client = PlainClient(_zeros())

    def refuse(gradients: Any, *, out: Any = None) -> Any:
        raise DistNetError("refused")

    with TensorFlowWorker(variables, client, loss=loss) as worker:
        worker.step(_batch())
        before = variables[0].numpy()
        client.push_pull = refuse  # type: ignore[method-assign]
        with pytest.raises(DistNetError, match="refused"):
            worker.step(_batch())
    assert np.array_equal(variables[0].numpy(), before)


class AbortsOneRound(PlainClient):
    """Refuses the reply of one push, after another was begun."""

    def __init__(self, parameters: Any, *, refused: int) -> None:
        super().__init__(parameters)
        self._refused = refused

    def receive(self, number: int, out: Any) -> Any:
        if number == self._refused:
            self._waiting.pop(0)
            self.version += 1
            raise RoundAborted("the round ended without this push")
        return super().receive(number, out)


def test_an_exchange_that_was_begun_is_finished_although_the_one_before_failed() -> None:
    variables, loss = _linear()
    client = AbortsOneRound(_zeros(), refused=2)
    with TensorFlowWorker(variables, client, loss=loss, overlap=True) as worker:
        for step in range(2):
            worker.step(_batch(step))
        with pytest.raises(RoundAborted):
            worker.step(_batch(2))
        worker.step(_batch(3))
    assert client.version == 4, "a push that was begun was not waited for"
    for variable, expected in zip(variables, client.parameters, strict=True):
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_compiling_ahead_leaves_nothing_to_the_first_step() -> None:
    variables, loss = _linear()
    traced: list[int] = []

    def counted(model: Any, batch: Any) -> Any:
        traced.append(1)
        return loss(model, batch)

    with TensorFlowWorker(variables, PlainClient(_zeros()), loss=counted) as worker:
        worker.compile((tf.TensorSpec([8, 3]), tf.TensorSpec([8, 1])))
        assert len(traced) == 1
        worker.step(tuple(map(tf.constant, _batch())))
        assert len(traced) == 1


def test_a_rank_takes_its_gpu_and_the_cpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert framework.choose_device(3) == "CPU:0"
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a", "b"] if kind == "GPU" else [])
    assert [framework.choose_device(rank) for rank in range(4)] == ["GPU:0", "GPU:1", "GPU:0", "GPU:1"]


def test_thread_limits_come_before_tensorflow_starts() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        framework.limit_threads(0)
    tf.constant(0.0)
    with pytest.raises(ConfigError, match="has started with"):
        framework.limit_threads(97)


PLACEMENT = """
    import numpy as np
    import tensorflow as tf
    from distnet.errors import ConfigError
    from distnet.tensorflow import TensorFlowWorker, limit_threads, prepare
    from test_tensorflow_worker import PlainClient

    assert prepare(rank=1, threads=1) == "CPU:0"
    assert tf.config.threading.get_intra_op_parallelism_threads() == 1
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    with tf.device("CPU:1"):
        variable = tf.Variable([1.0, 2.0], name="v")
    devices = []

    def loss(model, batch):
        outcome = tf.reduce_sum(model[0] * batch)
        devices.append(outcome.device)
        return outcome

    client = PlainClient([np.float32([1.0, 2.0])])
    with TensorFlowWorker([variable], client, loss=loss, device="CPU:1") as worker:
        worker.step(tf.constant([1.0, 1.0]))
    assert devices and all(device.endswith("CPU:1") for device in devices), devices
    assert variable.device.endswith("CPU:1") and variable.numpy().tolist() == [0.5, 1.5]
    try:
        TensorFlowWorker([variable], client, loss=loss, device="CPU:0")
    except ConfigError as error:
        assert "is on" in str(error) and "CPU:0" in str(error), error
    else:
        raise AssertionError("a variable on another device was taken")
    limit_threads(1)
    try:
        limit_threads(2)
    except ConfigError:
        print("placed")
"""


def test_computing_stays_on_the_given_device(request: pytest.FixtureRequest) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLACEMENT)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=request.path.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "placed"


# Against the engine.


@pytest.fixture(params=SEMANTICS)
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    import distnet

    with distnet.ParameterServer(
        _zeros(), semantics=request.param, optimizer=distnet.SGD(0.05), workers=2, address="tcp://127.0.0.1:0"
    ) as running:
        yield running


def _train(address: str, rank: int, transport: str, *, steps: int, overlap: bool, poison: int = -1) -> float:
    """Be one worker; at step ``poison`` its images are NaN."""
    import distnet

    variables, loss = _linear()
    client = distnet.connect(address, rank=rank, timeout=60.0, transport=transport)
    try:
        assert client.transport == transport
        with TensorFlowWorker(variables, client, loss=loss, overlap=overlap) as worker:
            metrics = None
            for step in range(steps):
                inputs, targets = _batch(1000 * rank + step)
                metrics = worker.step((inputs * np.float32("nan") if step == poison else inputs, targets))
            assert metrics is not None
            return float(metrics.loss)
    finally:
        client.close()


def _train_two(server: Any, transport: str, steps: tuple[int, int], **options: Any) -> list[Any]:
    outcomes: list[Any] = [None, None]

    def work(rank: int) -> None:
        own = {name: value[rank] if isinstance(value, tuple) else value for name, value in options.items()}
        try:
            outcomes[rank] = _train(server.address, rank, transport, steps=steps[rank], **own)
        except DistNetError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_two_workers_train_one_model_though_their_steps_differ_in_number(
    server: Any, transport: str, overlap: bool
) -> None:
    outcomes = _train_two(server, transport, (61, 60), overlap=overlap)
    assert all(isinstance(outcome, float) and outcome < 0.5 for outcome in outcomes), outcomes
    np.testing.assert_allclose(server.parameters()[0].ravel(), [1.0, -2.0, 0.5], atol=0.2)


def test_one_workers_nan_stops_that_worker_alone(server: Any) -> None:
    outcomes = _train_two(server, "shm", (30, 30), overlap=False, poison=(7, -1))
    assert isinstance(outcomes[0], NonFiniteGradient)
    assert isinstance(outcomes[1], float)
    assert all(np.isfinite(array).all() for array in server.parameters())


def _dense() -> Any:
    return tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1), tf.keras.layers.Dense(1)])


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_losses_as_names_objects_and_functions_are_the_same_loss(weighted: bool) -> None:
    def squared(y_true: Any, y_pred: Any) -> Any:
        return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)

    model = _dense()
    weights = np.linspace(0, 2, 8, dtype=np.float32)
    batch = (*_batch(), weights) if weighted else _batch()
    error = ((np.array(model(batch[0])) - batch[1]) ** 2)[:, 0]
    expected = (error * weights).mean() if weighted else error.mean()
    losses = tf.keras.losses
    begin = _initial(model)
    for loss in ("mse", losses.MeanSquaredError, losses.MeanSquaredError(), losses.get("mse"), squared):
        with TensorFlowWorker(model, PlainClient(begin), loss=loss) as worker:
            assert worker.step(batch).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("no_such_loss", "no loss of Keras is named 'no_such_loss'"),
        (lambda model: 0.0, r"loss= takes \(model\); expected a function loss\(model, batch\)"),
        (3, "loss is 3; expected a loss of Keras"),
    ],
)
def test_a_loss_that_is_none_is_refused_in_words(loss: Any, words: str) -> None:
    variables, _ = _linear()
    with pytest.raises(ConfigError, match=words):
        TensorFlowWorker(variables, PlainClient(_zeros()), loss=loss)


def test_a_batch_that_a_keras_loss_cannot_take_is_refused_in_words() -> None:
    model = _dense()
    client = PlainClient(_initial(model))
    with TensorFlowWorker(model, client, loss="mse") as worker:
        for batch, what in [({"x": _batch()[0]}, "a dict"), ((*_batch(), 1.0, 2.0), "a tuple of 4")]:
            with pytest.raises(ConfigError, match=f"a batch is {what}; a loss of Keras takes"):
                worker.step(batch)
    assert client.gradients == []


def test_layers_that_are_frozen_or_unfrozen_later_are_noticed() -> None:
    model = _dense()
    model.layers[0].trainable = False
    client = PlainClient(_initial(model))
    with TensorFlowWorker(model, client, loss="mse") as worker:
        worker.step(_batch())
        for layer, trainable in ((0, True), (1, False)):
            model.layers[layer].trainable = trainable
            with pytest.raises(ConfigError, match=rf"frozen or unfrozen.*{model.layers[layer].name}/kernel"):
                worker.step(_batch())
            model.layers[layer].trainable = not trainable
        worker.step(_batch())
    assert len(client.gradients) == 2


def test_keras_on_another_backend_is_refused_in_words() -> None:
    class OfAnotherBackend:
        value, trainable, path = np.zeros(1, np.float32), True, "dense/bias"

    with pytest.raises(ConfigError, match=r"Keras computes with numpy here; .*KERAS_BACKEND=tensorflow"):
        TensorFlowWorker([OfAnotherBackend()], PlainClient(_zeros()), loss="mse")
