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

import ctypes
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from distnet._private.arrays import Array, Arrays
from distnet.errors import ConfigError, ManifestMismatch

__all__ = ["StepMetrics", "TensorFlowWorker", "choose_device", "limit_threads", "prepare"]

ALIGNMENT_BYTES = 64  # TensorFlow aborts on aliased memory that begins elsewhere


class Exchange(Protocol):
    """A push_pull under way."""

    def wait(self, *, out: Any = None) -> Arrays: ...


class ParameterClient(Protocol):
    """What a worker needs of :class:`distnet.client.Client`."""

    rank: int | None

    @property
    def version(self) -> int: ...
    @property
    def staleness(self) -> int: ...
    def pull(self, *, out: Any = None) -> Arrays: ...
    def push_pull(self, gradients: Any, *, out: Any = None) -> Arrays: ...
    def begin_push_pull(self, gradients: Any) -> Exchange: ...
    def finish(self, *, timeout: float | None = None) -> Arrays: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one step did.

    Attributes:
        loss: of the minibatch, before its gradient was applied.
        staleness: as the client last heard: largest over shards, of its newest applied push.
        version: the smallest version over the shards.
        computing_s: seconds until loss and gradients were there.
        exchanging_s: seconds in push and pull; with ``overlap`` only what the step had to wait for.
    """

    loss: float
    staleness: int
    version: int
    computing_s: float
    exchanging_s: float


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
    with each worker, as in every data-parallel trainer without synchronised batch normalisation.

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
        self._variables = _trainable_variables(model, self.device)
        self._frozen = _Frozen(model)
        keras_loss = None if loss is None else _keras_loss(loss)
        self._takes_pairs = keras_loss is not None
        initial = client.pull()
        _check_shapes(self._variables, initial)
        on_gpu = "GPU" in self.device.upper()
        self._replica = _Replica(initial, page_locked=on_gpu)
        self._replica.assign_to(self._variables)
        self._overlap = overlap
        self._under_way: Exchange | None = None
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
        self.settle()
        self._client.pull(out=self._replica.arrays)
        self._replica.assign_to(self._variables)

    def step(self, batch: Any) -> StepMetrics:
        """Compute one minibatch's gradient, push it, and take fresh parameters.

        The first call compiles. With ``overlap`` the gradient is under way when this returns.

        Raises:
            ConfigError: a variable has no gradient, or one of another shape; a batch for a Keras loss is no ``(x, y)``
                or ``(x, y, sample_weight)``; layers were frozen or unfrozen since the worker was made.
            DistNetError: what the client's push_pull raises; the variables are then those of the last step.
        """
        begin = time.perf_counter()
        self._frozen.check()
        if self._takes_pairs:
            _check_pair(batch)
        loss, tensors = self._compute(batch)
        if len(tensors) != len(self._variables):
            raise ConfigError(f"step= returned {len(tensors)} gradients for {len(self._variables)} variables")
        gradients = [_host_array(tensor, variable) for tensor, variable in zip(tensors, self._variables, strict=True)]
        loss_value = float(loss)
        computed = time.perf_counter()
        self._exchange(self._replica.structured(gradients))
        return StepMetrics(
            loss=loss_value,
            staleness=self._client.staleness,
            version=self._client.version,
            computing_s=computed - begin,
            exchanging_s=time.perf_counter() - computed,
        )

    def finish(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are done, and put the final parameters into the model: the same on every rank.

        The end of this worker's training, by :meth:`distnet.Client.finish`; raises as that does.
        """
        self.settle()
        self._client.finish(timeout=timeout)
        self._client.pull(out=self._replica.arrays)
        self._replica.assign_to(self._variables)

    def settle(self) -> None:
        """Wait for an exchange that is under way and take its parameters; nothing to do without ``overlap``."""
        exchange, self._under_way = self._under_way, None
        if exchange is not None:
            exchange.wait(out=self._replica.arrays)
            self._replica.assign_to(self._variables)

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

    def _exchange(self, gradients: Arrays) -> None:
        if self._overlap:
            # Before waiting for the last one: the client takes its newest reply for what a gradient was computed from.
            begun = self._client.begin_push_pull(gradients)
            try:
                self.settle()
            finally:  # the one that was begun is on its way, whatever became of the one before
                self._under_way = begun
        else:
            self._client.push_pull(gradients, out=self._replica.arrays)
            self._replica.assign_to(self._variables)


class _Replica:
    """Memory for the parameters, shared by NumPy arrays (the client writes) and tensors (the variables read).

    The tensors live as long as this does, so TensorFlow never holds the only reference to the memory and never takes it
    for scratch: an ``assign_add`` on a variable makes it a copy.
    """

    def __init__(self, initial: Arrays, *, page_locked: bool) -> None:
        sizes = [-(-array.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for array in _values(initial)]
        memory = np.zeros(sum(sizes) + ALIGNMENT_BYTES, np.uint8)
        if page_locked:
            _page_lock(memory)
        start = -memory.ctypes.data % ALIGNMENT_BYTES
        self._list: list[Array] = []
        for array, size in zip(_values(initial), sizes, strict=True):
            own = memory[start : start + array.nbytes].view(np.float32).reshape(array.shape)
            np.copyto(own, array)
            self._list.append(own)
            start += size
        self._names = list(initial) if isinstance(initial, Mapping) else None
        self.arrays: Arrays = self.structured(self._list)
        with tf.device("CPU:0"):
            self._tensors = [_aliased(array) for array in self._list]

    def structured(self, values: list[Array]) -> Arrays:
        """Return ``values`` as the server structures its parameters: by name, or as a list."""
        return values if self._names is None else dict(zip(self._names, values, strict=True))

    def assign_to(self, variables: Sequence[Any]) -> None:
        for variable, tensor in zip(variables, self._tensors, strict=True):
            variable.assign(tensor, read_value=False)


def _values(arrays: Arrays) -> list[Array]:
    return list(arrays.values()) if isinstance(arrays, Mapping) else list(arrays)


def _aliased(array: Array) -> Any:
    if array.size == 0 or array.ctypes.data % ALIGNMENT_BYTES:
        raise AssertionError(f"a replica's tensor must be non-empty and begin on {ALIGNMENT_BYTES} bytes")
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _page_lock(memory: NDArray[np.uint8]) -> None:
    """Page-lock memory that goes to a GPU. Without CUDA's runtime library it stays pageable: slower, not wrong."""
    for name in ("libcudart.so.12", "libcudart.so"):
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        runtime.cudaHostRegister(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), ctypes.c_uint(0))
        return


def _trainable_variables(model: Any, device: str) -> tuple[Any, ...]:
    """Return the model's trainable TensorFlow variables, checked."""
    found = getattr(model, "trainable_variables", model)
    if not isinstance(found, Iterable):
        raise ConfigError(
            f"model is a {type(model).__name__}; expected a Keras model, a tf.Module, or a sequence of variables"
        )
    variables = tuple(_tensorflow_variable(variable) for variable in found)
    if not variables:
        raise ConfigError("the model has no trainable variables (a Keras model must be built first)")
    wanted = tf.DeviceSpec.from_string(f"/device:{device}" if "/" not in device else device)
    for variable in variables:
        if variable.dtype != tf.float32:
            raise ConfigError(f"variable {variable.name} is {variable.dtype.name}; a server holds float32 only")
        if not all(variable.shape):
            raise ConfigError(
                f"variable {variable.name} has shape {tuple(variable.shape)}; expected no empty dimension"
            )
        placed = tf.DeviceSpec.from_string(variable.device)
        if (placed.device_type, placed.device_index) != (wanted.device_type, wanted.device_index):
            raise ConfigError(
                f"variable {variable.name} is on {variable.device}, but this worker computes on {device}; call "
                f"distnet.tensorflow.prepare(rank=…) or build the model under tf.device({device!r})"
            )
    return variables


def _tensorflow_variable(variable: Any) -> Any:
    """Return TensorFlow's own variable, for one of Keras or TensorFlow."""
    own = variable.value if _is_keras(variable) else variable
    if isinstance(own, tf.Variable):
        return own
    if _is_keras(variable):
        raise ConfigError(
            f"Keras computes with {type(own).__module__.partition('.')[0]} here; a TensorFlowWorker needs "
            "KERAS_BACKEND=tensorflow, set before Keras is imported; or push the gradients yourself, with "
            "distnet.connect()"
        )
    raise ConfigError(f"the model holds a {type(own).__name__}; expected variables of TensorFlow or Keras")


def _is_keras(variable: Any) -> bool:
    return not isinstance(variable, tf.Variable) and hasattr(variable, "value")


class _Frozen:
    """Which of a Keras model's variables were trainable when its worker was made: exactly these travel."""

    def __init__(self, model: Any) -> None:
        self._variables = [variable for variable in getattr(model, "variables", model) if _is_keras(variable)]
        self._trainable = [variable.trainable for variable in self._variables]

    def check(self) -> None:
        """Raise ConfigError where that is otherwise now."""
        if [variable.trainable for variable in self._variables] == self._trainable:
            return
        changed = [
            variable.path
            for variable, trainable in zip(self._variables, self._trainable, strict=True)
            if variable.trainable != trainable
        ]
        raise ConfigError(
            f"layers were frozen or unfrozen after this worker was made: {', '.join(changed[:3])}"
            f"{' and others' if len(changed) > 3 else ''}; the tensors of a job are fixed: set layer.trainable before "
            "the worker is made, alike in every worker, or start a new server and new workers with the model as it is"
        )


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


def _check_shapes(variables: Sequence[Any], arrays: Arrays) -> None:
    values = _values(arrays)
    names = list(arrays) if isinstance(arrays, Mapping) else [str(index) for index in range(len(values))]
    if len(values) != len(variables):
        raise ManifestMismatch(
            f"the server holds {len(values)} tensors, the model {len(variables)} trainable variables; start the server "
            "with this model's initial values"
        )
    for name, value, variable in zip(names, values, variables, strict=True):
        if value.shape != tuple(variable.shape):
            raise ManifestMismatch(
                f"the server's tensor {name} has shape {value.shape}, the model's variable {variable.name} "
                f"{tuple(variable.shape)}; their orders or their models differ"
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


def _host_array(tensor: Any, variable: Any) -> Array:
    """Return a gradient's own memory as an array, valid while the tensor lives."""
    if tensor is None:
        raise ConfigError(
            f"variable {variable.name} has no gradient: the loss does not depend on it; give the worker a list of "
            "variables without it, to the server too"
        )
    if tensor.shape != variable.shape:
        raise ConfigError(
            f"the gradient of {variable.name} has shape {tuple(tensor.shape)}; expected {tuple(variable.shape)}"
        )
    return cast(Array, np.from_dlpack(tensor))
