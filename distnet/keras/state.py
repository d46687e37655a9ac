"""What a model holds beside what it trains, such as moving statistics of batch normalisation: alike on all workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from distnet.frameworks.ranks import Ranks

__all__ = ["State", "host_array", "set_values"]


class State:
    """The variables of floating point that a model does not train.

    All workers begin with those of rank 0. When they are joined, each that has changed on any worker becomes the mean
    of all workers', or rank 0's; the others, such as the weights of frozen layers, are left as they are, to the bit.
    Whole numbers are left too, and so the seeds of dropout: each worker drops its own.

    Args:
        model: of Keras, and built.
        how: ``"average"`` or ``"rank0"``.
        say: is told what is done, once, where there is such state.

    Thread safety: none.
    """

    def __init__(self, model: Any, how: Literal["average", "rank0"], say: Callable[[str], None]) -> None:
        self._model, self._how, self._say = model, how, say
        self._digests: list[bytes] = []
        self._said = False

    def begin(self, ranks: Ranks) -> None:
        """Have rank 0's."""
        variables = self._variables()
        values = [host_array(variable) for variable in variables]
        if ranks.size > 1:
            values = ranks.broadcast(values)
            set_values(variables, values)
        self._digests = [_digest(value) for value in values]

    def join(self, ranks: Ranks) -> None:
        """Have the mean of all workers', or rank 0's.

        Raises:
            DistNetError: what :meth:`Ranks.meet` raises; the variables are then as they were.
        """
        if ranks.size == 1:
            return
        variables = self._variables()
        values = [host_array(variable) for variable in variables]
        before = self._digests if len(self._digests) == len(values) else [b""] * len(values)
        own = [_digest(value) != digest for value, digest in zip(values, before, strict=True)]
        changed = np.flatnonzero(ranks.sum(np.array(own, np.int32))) if own else np.array([], np.int64)
        if not changed.size:
            return
        joined = [values[place] for place in changed]
        joined = ranks.average(joined) if self._how == "average" else ranks.broadcast(joined)
        for place, value in zip(changed, joined, strict=True):
            set_values([variables[place]], [value])
            values[place] = host_array(variables[place])
        self._digests = [_digest(value) for value in values]
        self._tell([variables[place].path for place in changed])

    def _variables(self) -> list[Any]:
        return [variable for variable in self._model.non_trainable_weights if "float" in str(variable.dtype)]

    def _tell(self, paths: list[str]) -> None:
        if self._said:
            return
        self._said = True
        what = "averaged over all workers" if self._how == "average" else "taken from rank 0 by all workers"
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        self._say(f"{paths[0]}{others}, which are not trained, are {what} at the end of each epoch")


def host_array(variable: Any) -> NDArray[Any]:
    """Return a copy of a variable's value; float16 and bfloat16 as float32."""
    dtype = str(variable.dtype)
    tensor = keras.ops.cast(keras.ops.convert_to_tensor(variable), "float32" if "float16" in dtype else dtype)
    return np.array(keras.ops.convert_to_numpy(tensor), order="C")


def set_values(variables: list[Any], values: list[NDArray[Any]]) -> None:
    """Assign arrays to variables, cast to their dtypes."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(keras.ops.cast(keras.ops.convert_to_tensor(value), variable.dtype))


def _digest(value: NDArray[Any]) -> bytes:
    return hashlib.blake2b(value.tobytes(), digest_size=16).digest()
