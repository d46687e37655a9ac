"""How a model's arrays are given and returned: by position or by name, float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from distnet.errors import ManifestMismatch

__all__ = ["Array", "Arrays", "ArraysLike", "named_arrays"]

Array: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = "list[Array] | dict[str, Array]"
ArraysLike: TypeAlias = "Sequence[Array] | Mapping[str, Array]"


def named_arrays(arrays: ArraysLike) -> tuple[bool, list[tuple[str, Array]]]:
    """Return whether the arrays have names of their own, and (name, float32 array) pairs in order.

    The arrays are C-contiguous and aligned: copies where what was given is not.

    Raises:
        ManifestMismatch: an element is not a float32 array.
    """
    named = isinstance(arrays, Mapping)
    items = list(arrays.items()) if isinstance(arrays, Mapping) else [(str(i), a) for i, a in enumerate(arrays)]
    pairs: list[tuple[str, Array]] = []
    for name, value in items:
        array = np.asarray(value)
        if array.dtype != np.float32:
            raise ManifestMismatch(f"parameter {name!r} is {array.dtype}; expected float32: use .astype('float32')")
        pairs.append((str(name), np.require(array, requirements=("C", "ALIGNED")).reshape(array.shape)))
    return named, pairs
