"""The way from a compiled step of JAX to a function of NumPy arrays, such as a client's exchange.

A call of :func:`call_on_host` outside ``jit`` calls the function at once. Within ``jit`` it becomes a part of the step:

- by ``jax.experimental.buffer_callback`` on CPUs: the function sees XLA's own memory, and writes its results there.
- by ``jax.experimental.io_callback``, ordered, where that is missing and on accelerators: operands and results are
  copied.

Never by ``pure_callback``, which JAX may leave out or repeat. The function calls nothing of JAX: a callback that does
can wait for the step that waits for it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import io_callback
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from numpy.typing import NDArray

from distnet.errors import ConfigError
from distnet.frameworks.replica import ALIGNMENT_BYTES
from distnet.jax.failures import Failures

try:
    from jax.experimental.buffer_callback import buffer_callback as _buffer_callback
except ImportError:
    _buffer_callback = None

__all__ = ["HostFunction", "Result", "Way", "call_on_host", "chosen_way"]

buffer_callback: Any = _buffer_callback  # None: it came with JAX 0.6

# Takes the arrays to write results to, and the operands, which it must not write to.
HostFunction = Callable[[Sequence[NDArray[Any]], Sequence[NDArray[Any]]], None]

_WHERE = "jit, scan, fori_loop, while_loop and cond may have it within"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a host function writes.

    Attributes:
        shape: of the array.
        dtype: its name in NumPy.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Way:
    """How a compiled step calls a host function.

    Attributes:
        name: of JAX's function for it.
        why: that was taken.
    """

    name: Literal["buffer_callback", "io_callback"]
    why: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    function: HostFunction
    failures: Failures
    say: bool
    marks_step: bool

    def __call__(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[NDArray[Any]]) -> None:
        with self.failures.kept():
            self.function(outputs, inputs)


def call_on_host(
    function: HostFunction,
    operands: Sequence[Any],
    results: Sequence[Result],
    *,
    failures: Failures,
    say: bool = True,
    marks_step: bool = True,
) -> list[Any]:
    """Call a function of NumPy arrays with arrays of JAX, in a step that is being traced or at once.

    Args:
        function: gets memory for its results, aligned to 64 bytes, and the operands; both are its own only while it
            runs.
        operands: arrays of JAX or NumPy, at least one.
        results: what the function writes. Outside ``jit`` each is put where the operand of the same number is.
        failures: keeps what the function raises within a compiled step.
        say: whether the first step that is traced says which way was taken, and why.
        marks_step: whether JAX is told that the step has effects. It then keeps the call where nobody uses the results,
            and ``jax.effects_barrier()`` waits for it, but starts each step by some 0.3 ms of Python. False is for
            callers that use the results and wait for them.

    Returns:
        An array of JAX for each result.

    Raises:
        ConfigError: it is called under ``vmap`` or ``grad``, or in a step over several devices.
    """
    way = chosen_way().name
    call = _Call(function, failures, say, marks_step)
    _effects_of(way)  # found before the primitive needs them, which is within a trace
    bound: list[Any] = _host_call().bind(*operands, call=call, results=tuple(results), way=way)
    return bound


@functools.cache
def chosen_way() -> Way:
    """Return how compiled steps of this process call host functions."""
    platform = jax.default_backend()
    if buffer_callback is None:
        return Way("io_callback", f"JAX {jax.__version__} has no buffer_callback")
    if platform != "cpu":
        return Way("io_callback", f"the arrays are on {platform}")
    return Way("buffer_callback", "the arrays are in this process's memory")


@functools.cache
def _say(way: Way) -> None:
    sys.stderr.write(f"distnet: steps of JAX call DistNet by {way.name}, because {way.why}\n")


# ---- the primitive -------------------------------------------------------------------------------------------------
@functools.cache
def _host_call() -> Any:
    """Return the primitive that stands for a call of a host function.

    It is one of our own, so that what JAX cannot do with it is said in our words, wherever in JAX that comes to light.
    """
    primitive = Primitive("distnet_host_call")
    primitive.multiple_results = True
    primitive.def_effectful_abstract_eval(_abstract)
    primitive.def_impl(_at_once)
    lowered = mlir.lower_fun(_staged, multiple_results=True)

    def lower(context: Any, *operands: Any, **parameters: Any) -> Any:
        _check_devices(context)
        return lowered(context, *operands, **parameters)

    mlir.register_lowering(primitive, lower)
    batching.primitive_batchers[primitive] = _refuse_batches
    ad.primitive_jvps[primitive] = _refuse_derivatives
    return primitive


@functools.cache
def _effects_of(way: str) -> frozenset[Any]:
    """Return what JAX says of a step that calls by this way: it is neither left out nor repeated."""

    def call(operand: Any) -> Any:
        return _staged(operand, call=lambda outputs, inputs: None, results=(Result((1,)),), way=way)

    jaxpr = jax.make_jaxpr(call)(np.zeros(1, np.float32))
    return frozenset(jaxpr.effects)


def _abstract(*operands: Any, call: _Call, results: tuple[Result, ...], way: str) -> tuple[list[Any], set[Any]]:
    del operands
    if call.say:
        _say(chosen_way())
    avals = [jax.core.ShapedArray(result.shape, np.dtype(result.dtype)) for result in results]
    return avals, set(_effects_of(way)) if call.marks_step or way != "buffer_callback" else set()


def _at_once(*operands: Any, call: _Call, results: tuple[Result, ...], way: str) -> list[Any]:
    """Call outside any trace."""
    del way
    outputs = [_aligned(result) for result in results]
    call.function(outputs, [np.asarray(operand) for operand in operands])
    places = [
        _place_of(operand, result) for operand, result in zip(_padded(operands, len(outputs)), results, strict=True)
    ]
    if all(place == places[0] for place in places):  # one call of JAX is a good deal cheaper than one for each
        put: list[Any] = jax.device_put(outputs, places[0])
        return put
    return [jax.device_put(output, place) for output, place in zip(outputs, places, strict=True)]


def _staged(*operands: Any, call: Any, results: tuple[Result, ...], way: str) -> list[Any]:
    """Call as a part of a step."""
    shapes = [jax.ShapeDtypeStruct(result.shape, np.dtype(result.dtype)) for result in results]
    if way == "buffer_callback":

        def on_buffers(context: Any, outputs: Sequence[Any], *inputs: Any) -> None:
            del context
            call([np.asarray(output) for output in outputs], [np.asarray(operand) for operand in inputs])

        made: list[Any] = buffer_callback(on_buffers, shapes, has_side_effect=True)(*operands)
        return made

    def on_copies(*inputs: Any) -> list[NDArray[Any]]:
        outputs = [_aligned(result) for result in results]  # new ones: XLA may read them later than the next call
        call(outputs, [np.asarray(operand) for operand in inputs])
        return outputs

    copied: list[Any] = io_callback(on_copies, shapes, *operands, ordered=True)
    return copied


def _check_devices(context: Any) -> None:
    """Refuse a step over several devices, each of which would push."""
    devices = _devices_of(context)
    if devices > 1:
        raise ConfigError(
            f"the exchange with the server, push_pull(), is in a step over {devices} devices, as jit over sharded "
            "arrays, pmap and shard_map make it; expected one device a process. Make it outside such a step, on its "
            "results"
        )


def _devices_of(context: Any) -> int:
    axes = context.module_context.axis_context
    if (number := getattr(axes, "num_devices", None)) is not None:
        return int(number)
    if (mesh := getattr(axes, "mesh", None)) is not None:
        return int(mesh.size)
    return int(getattr(getattr(axes, "axis_env", None), "nreps", 1))


def _refuse_batches(*arguments: Any, **parameters: Any) -> Any:
    raise ConfigError(
        "the exchange with the server, push_pull(), was called under jax.vmap; expected one exchange a step: call it "
        f"outside vmap, with the mean of the gradients. {_WHERE}"
    )


def _refuse_derivatives(*arguments: Any, **parameters: Any) -> Any:
    raise ConfigError(
        "the exchange with the server, push_pull(), is in a function that is differentiated (jax.grad, jvp, vjp, "
        "linearize or checkpoint); "
        f"take the gradients first, and call it on them. {_WHERE}"
    )


# ---- memory --------------------------------------------------------------------------------------------------------
def _aligned(result: Result) -> NDArray[Any]:
    """Return new memory, which JAX takes as an array's own where it is aligned so."""
    dtype = np.dtype(result.dtype)
    size = dtype.itemsize * int(np.prod(result.shape, dtype=np.int64))
    memory = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(result.shape)


def _padded(operands: Sequence[Any], number: int) -> list[Any]:
    return [*operands[:number], *[None] * (number - len(operands))]


def _place_of(operand: Any, result: Result) -> Any:
    if isinstance(operand, jax.Array) and operand.shape == result.shape:
        return operand.sharding
    return None
