"""A worker for TensorFlow and Keras models: gradients out, fresh parameters in.

::

    prepare(rank=client.rank, threads=1)                  # before anything else touches TensorFlow
    model = build_model()
    with TensorFlowWorker(model, client, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)) as worker:
        for batch in batches:
            print(worker.step(batch).loss)

Everything here has run on CPUs and on TensorFlow's logical devices. What only a GPU takes (memory growth, page-locking,
gradients copied to the host inside the step) has not run on one yet.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, cast

import numpy as np
import tensorflow as tf

from distnet._private.arrays import Array
from distnet.errors import ConfigError
from distnet.frameworks.client_protocol import ParameterClient
from distnet.frameworks.exchange import Exchange
from distnet.frameworks.keras_variables import FixedTrainables, is_keras_variable
from distnet.frameworks.metrics import StepMetrics, measured
from distnet.frameworks.ranks import Ranks, RanksClient, averaged
from distnet.frameworks.replica import ALIGNMENT_BYTES, Replica
from distnet.frameworks.tensors import ModelTensor, check_gradients, check_held, check_holdable
from distnet.process_group import ProcessGroup

__all__ = ["StepMetrics", "TensorFlowWorker", "choose_device", "limit_threads", "prepare"]


def limit_threads(threads: int) -> None:
    """Let TensorFlow compute on ``threads`` threads of the CPU. Call before TensorFlow starts (its first tensor).

    Raises:
        ConfigError: ``threads`` is below 1, or TensorFlow has started with another number.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}; expected at least 1")
    wanted = {"intra": threads, "inter": 1}
    config = tf.config.threading
    present = {"intra": config.get_intra_op_parallelism_threads(), "inter": config.get_inter_op_parallelism_threads()}
    if present == wanted:
        return
    try:
        config.set_intra_op_parallelism_threads(threads)
        config.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise ConfigError(
            f"TensorFlow has started with {present['intra'] or 'all'} threads; expected limit_threads({threads}) "
            "before the first tensor or variable"
        ) from error


def choose_device(rank: int) -> str:
    """Return the device of a rank: ``GPU:<rank modulo GPUs>``, or ``CPU:0`` where there is no GPU."""
    gpus = tf.config.list_logical_devices("GPU")
    return f"GPU:{rank % len(gpus)}" if gpus else "CPU:0"


def prepare(*, rank: int, threads: int | None = None) -> str:
    """Take this rank's part of the machine: one GPU, its memory taken as needed, or so many threads of the CPU.

    Call before TensorFlow starts and build the model afterwards: TensorFlow then sees one GPU only, and everything is
    placed on it.

    Returns:
        The device to hand to :class:`TensorFlowWorker`.

    Raises:
        ConfigError: TensorFlow has started otherwise already.
    """
    if threads is not None:
        limit_threads(threads)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        mine = gpus[rank % len(gpus)]
        try:
            tf.config.set_visible_devices(mine, "GPU")
            tf.config.experimental.set_memory_growth(mine, True)
        except RuntimeError as error:
            raise ConfigError(
                "TensorFlow has started; expected prepare() before the first tensor or variable"
            ) from error
        return "GPU:0"
    return "CPU:0"


class TensorFlowWorker:
    """Computes gradients of a model on one device and keeps its variables fresh from a server.

    On a CPU no parameter is copied after its arrival: the client writes replies into memory that the variables share.
    So a tensor kept from ``variable.read_value()`` changes with the next step, and what else is assigned to a variable
    is lost with it; ``.numpy()`` and ``get_weights()`` copy. Gradients are handed over where TensorFlow left them.

    Only trainable variables travel. Other state (the moving statistics of batch normalisation, seeds of dropout) stays
    with each worker, as in every data-parallel trainer without synchronised batch normalisation;
    :meth:`synchronize_state` averages the former.

    Thread safety: none; use a worker, like its client, from one thread.

    Args:
        model: a Keras model or a ``tf.Module`` (its trainable variables travel), or a sequence of variables; in the
            order, with the shapes, of the server's parameters; all float32.
        client: of :func:`distnet.connect`. It stays the caller's to close.
        loss: a Keras loss, its name, or a function whose first argument is called ``y_true``: for batches ``(x, y)`` or
            ``(x, y, sample_weight)``, computed with ``model(x, training=True)`` and the model's own penalties; or any
            other function ``loss(model, batch)`` that returns a scalar.
        step: instead of ``loss``: a function ``step(batch)`` that returns ``(loss, gradients)``.
        device: where to compute, as TensorFlow names it; ``None``: :func:`choose_device` of the client's rank.
        overlap: exchange the gradient of one step while the next is computed, from parameters one step older. Needs the
            two pushes in flight that every semantics allows unless told otherwise.

    Raises:
        ConfigError: variables of another dtype or on another device, neither or both of ``loss`` and ``step``, a loss
            that is none, or Keras with another backend than TensorFlow.
        ManifestMismatch: the server's parameters are not this model's.
    """

    def __init__(
        self,
        model: Any,
        client: ParameterClient,
        *,
        loss: Any = None,
        step: Callable[[Any], tuple[Any, Sequence[Any]]] | None = None,
        device: str | None = None,
        overlap: bool = False,
    ) -> None:
        if (loss is None) == (step is None):
            raise ConfigError("expected either loss= or step=, not both and not neither")
        self._client = client
        self.device = device if device is not None else choose_device(client.rank or 0)
        self._variables = _trainable_variables(model)
        self._tensors = [_described(variable) for variable in self._variables]
        check_holdable(self._tensors)
        _check_placed(self._variables, self.device)
        self._state = _state_variables(model)
        self._trainables = FixedTrainables(model)
        keras_loss = None if loss is None else _keras_loss(loss)
        self._takes_pairs = keras_loss is not None
        initial = client.pull()
        check_held(self._tensors, initial)
        replica = Replica(initial, page_locked="GPU" in self.device.upper())
        self._exchange = Exchange(client, replica, arrived=_assigning(replica, self._variables), overlap=overlap)
        self._compute = _compiled(step or _step_of(model, keras_loss, loss, self._variables), self.device)

    @property
    def variables(self) -> tuple[Any, ...]:
        """The variables that travel, in the order of the server's parameters."""
        return self._variables

    def compile(self, signature: Any) -> None:
        """Compile the step ahead, for batches of this structure of ``tf.TensorSpec``; else the first step does."""
        self._compute.get_concrete_function(signature)

    def pull(self) -> None:
        """Take the server's parameters as they are now, and push nothing."""
        self._exchange.pull()

    def step(self, batch: Any) -> StepMetrics:
        """Compute one minibatch's gradient, push it, and take fresh parameters.

        The first call compiles. With ``overlap`` the gradient is under way when this returns.

        Raises:
            ConfigError: a variable has no gradient, or one of another shape; a batch for a Keras loss is no ``(x, y)``
                or ``(x, y, sample_weight)``; layers were frozen or unfrozen since the worker was made.
            DistNetError: what the client's push_pull raises; the variables are then those of the last step.
        """
        begun_s = time.perf_counter()
        self._trainables.check()
        if self._takes_pairs:
            _check_pair(batch)
        loss, tensors = self._compute(batch)
        gradients = check_gradients(self._tensors, [_host_array(tensor) for tensor in tensors])
        loss_value = float(loss)
        computed_s = time.perf_counter()
        self._exchange.push_pull(gradients)
        return measured(self._client, loss=loss_value, begun_s=begun_s, computed_s=computed_s)

    def finish(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are done, and put the final parameters into the model: the same on every rank.

        The end of this worker's training, by :meth:`distnet.Client.finish`; raises as that does.
        """
        self._exchange.finish(timeout=timeout)

    def synchronize_state(self, group: ProcessGroup | None = None) -> None:
        """Average what is not trained over all ranks: the moving statistics of batch normalisation.

        All ranks call it, for instance before an evaluation or after :meth:`finish`; each then has the same values.
        Averaged are the model's variables of floating point that are not trainable.

        Args:
            group: whose ranks hold this model. None: all ranks of the client's server, which meet there first.

        Raises:
            ConfigError: ranks are at different places.
            DistNetError: what the client's :meth:`~distnet.Client.barrier` and :class:`distnet.ProcessGroup` raise,
                such as a :class:`~distnet.CollectiveMismatch` where ranks hold different models; the variables are then
                as they were.
        """
        self.settle()
        own = [variable.numpy() for variable in self._state]
        averages = self._averaged_by_all(own) if group is None else averaged(group, own)
        for variable, average in zip(self._state, averages, strict=True):
            variable.assign(average, read_value=False)

    def _averaged_by_all(self, arrays: list[Any]) -> list[Any]:
        ranks = Ranks(cast(RanksClient, self._client), "distnet.tensorflow")
        try:
            ranks.meet("synchronize_state()")
            return ranks.average(arrays)
        finally:
            ranks.close()

    def settle(self) -> None:
        """Wait for an exchange that is under way and take its parameters; nothing to do without ``overlap``."""
        self._exchange.settle()

    def close(self) -> None:
        """Settle, and let go of the client. The model keeps its last parameters."""
        self.settle()

    def __enter__(self) -> TensorFlowWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def _assigning(replica: Replica, variables: Sequence[Any]) -> Callable[[], None]:
    """Return a function that makes the replica's memory the variables' own: no value is copied.

    It holds the tensors that share the memory, so TensorFlow never holds the only reference to them and never takes the
    memory for scratch: an ``assign_add`` on a variable makes it a copy.
    """
    with tf.device("CPU:0"):
        tensors = [_aliased(array) for array in replica.tensors]

    def assign() -> None:
        for variable, tensor in zip(variables, tensors, strict=True):
            variable.assign(tensor, read_value=False)

    assign()
    return assign


def _aliased(array: Array) -> Any:
    if array.size == 0 or array.ctypes.data % ALIGNMENT_BYTES:
        raise AssertionError(f"TensorFlow aborts on aliased memory that does not begin on {ALIGNMENT_BYTES} bytes")
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _trainable_variables(model: Any) -> tuple[Any, ...]:
    """Return TensorFlow's own variables of a model, those that are trained."""
    found = getattr(model, "trainable_variables", model)
    if not isinstance(found, Iterable):
        raise ConfigError(
            f"model is a {type(model).__name__}; expected a Keras model, a tf.Module, or a sequence of variables"
        )
    variables = tuple(_tensorflow_variable(variable) for variable in found)
    if not variables:
        raise ConfigError("the model has no trainable variables (a Keras model must be built first)")
    return variables


def _state_variables(model: Any) -> tuple[Any, ...]:
    """Return TensorFlow's own variables of a model that are numbers of floating point and not trained."""
    found = (_tensorflow_variable(variable) for variable in getattr(model, "non_trainable_variables", ()))
    return tuple(variable for variable in found if variable.dtype.is_floating)


def _described(variable: Any) -> ModelTensor:
    label = f"variable {variable.name}"
    return ModelTensor(label=label, shape=tuple(variable.shape), dtype=variable.dtype.name)


def _check_placed(variables: Sequence[Any], device: str) -> None:
    """Raise ConfigError unless all variables are on the device that is computed on."""
    wanted = tf.DeviceSpec.from_string(f"/device:{device}" if "/" not in device else device)
    for variable in variables:
        placed = tf.DeviceSpec.from_string(variable.device)
        if (placed.device_type, placed.device_index) != (wanted.device_type, wanted.device_index):
            raise ConfigError(
                f"variable {variable.name} is on {variable.device}, but this worker computes on {device}; call "
                f"distnet.tensorflow.prepare(rank=…) or build the model under tf.device({device!r})"
            )


def _tensorflow_variable(variable: Any) -> Any:
    """Return TensorFlow's own variable, for one of Keras or TensorFlow."""
    own = variable.value if is_keras_variable(variable) else variable
    if isinstance(own, tf.Variable):
        return own
    if is_keras_variable(variable):
        raise ConfigError(
            f"Keras computes with {type(own).__module__.partition('.')[0]} here; a TensorFlowWorker needs "
            "KERAS_BACKEND=tensorflow, set before Keras is imported; or push the gradients yourself, with "
            "distnet.connect()"
        )
    raise ConfigError(f"the model holds a {type(own).__name__}; expected variables of TensorFlow or Keras")


def _keras_loss(loss: Any) -> Any | None:
    """Return a loss of labels and predictions as one of Keras; None for a function of model and batch."""
    losses = tf.keras.losses
    if isinstance(loss, str):
        try:
            loss = losses.get(loss)
        except ValueError as error:
            raise ConfigError(f"no loss of Keras is named {loss!r}") from error
    if isinstance(loss, losses.Loss):
        return loss
    if not callable(loss):
        raise ConfigError(f"loss is {loss!r}; expected a loss of Keras, its name, or a function")
    if isinstance(loss, type) and issubclass(loss, losses.Loss):
        return loss()
    if not _takes_labels(loss):
        return None

    class Function(tf.keras.losses.Loss):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return loss(y_true, y_pred)

    return Function(name=getattr(loss, "__name__", None))


def _takes_labels(loss: Callable[..., Any]) -> bool:
    """Return whether a function is one of labels and predictions, as those of Keras, not of model and batch."""
    try:
        signature = inspect.signature(loss)
        signature.bind(None, None)
    except ValueError:
        return False  # a callable that does not say what it takes
    except TypeError as error:
        raise ConfigError(
            f"loss= takes {signature}; expected a function loss(model, batch), or loss(y_true, y_pred)"
        ) from error
    return next(iter(signature.parameters)) == "y_true"


def _check_pair(batch: Any) -> None:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise ConfigError(
            f"a batch is {what}; a loss of Keras takes (x, y) or (x, y, sample_weight). For other batches give "
            "loss=, a function loss(model, batch)"
        )


def _step_of(
    model: Any, keras_loss: Any | None, loss: Any, variables: Sequence[Any]
) -> Callable[[Any], tuple[Any, Sequence[Any]]]:
    """Return a step function that differentiates the Keras loss, or where there is none ``loss(model, batch)``."""
    if keras_loss is not None:

        def value(batch: Any) -> Any:
            weights = batch[2] if len(batch) == 3 else None
            outcome = tf.reduce_mean(keras_loss(batch[1], model(batch[0], training=True), sample_weight=weights))
            penalties = getattr(model, "losses", [])
            return tf.add_n([outcome, *penalties]) if penalties else outcome
    else:

        def value(batch: Any) -> Any:
            return loss(model, batch)

    def step(batch: Any) -> tuple[Any, Sequence[Any]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outcome = value(batch)
        return outcome, tape.gradient(outcome, variables)

    return step


def _compiled(step: Callable[[Any], tuple[Any, Sequence[Any]]], device: str) -> Any:
    """Compile a step that ends with dense float32 gradients in the host's memory."""

    def compute(batch: Any) -> tuple[Any, list[Any]]:
        with tf.device(device):
            loss, gradients = step(batch)
            dense = [None if gradient is None else _dense(gradient) for gradient in gradients]
        if "GPU" not in device.upper():
            return loss, dense
        with tf.device("CPU:0"):  # inside the step, where TensorFlow copies to page-locked memory of its own
            return loss, [None if gradient is None else tf.identity(gradient) for gradient in dense]

    return tf.function(compute, reduce_retracing=True)


def _dense(gradient: Any) -> Any:
    return tf.cast(tf.convert_to_tensor(gradient), tf.float32)


def _host_array(gradient: Any) -> Array | None:
    """Return a gradient's own memory as an array; None where there is no gradient."""
    return None if gradient is None else cast(Array, np.from_dlpack(gradient))
