"""A model's trained variables as a server holds them: named, float32, in the server's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from distnet._private.arrays import Array, Arrays
from distnet._private.manifest import Manifest
from distnet.errors import ConfigError, ManifestMismatch
from distnet.frameworks.tensors import ModelTensor, check_held

__all__ = ["Variables", "number"]

# What is cast to float32 on its way to the server, and once on its way back.
_FLOATS = ("float32", "float64", "float16", "bfloat16")


class Variables:
    """The variables that a model trains, in the order of the model until :meth:`match` takes the server's.

    Args:
        model: of Keras, and built.

    Raises:
        ConfigError: it trains none, or one that no server can hold.

    Thread safety: none.
    """

    def __init__(self, model: Any) -> None:
        self._named = dict(_named(model.trainable_variables))
        if not self._named:
            raise ConfigError("the model has no trainable variable; there is nothing to train")
        for name, variable in self._named.items():
            _check_holdable(name, variable)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._named.values())

    def __len__(self) -> int:
        return len(self._named)

    @property
    def names(self) -> list[str]:
        """What the server calls them."""
        return list(self._named)

    def initial(self) -> dict[str, Array]:
        """Return copies of the values, by name: what a server begins with."""
        return dict(zip(self.names, self.values(), strict=True))

    def values(self) -> list[Array]:
        """Return copies of the values, as float32."""
        return [
            np.array(keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32")), np.float32, order="C")
            for variable in self
        ]

    def match(self, held: Arrays) -> None:
        """Take the order of the server's tensors.

        Raises:
            ManifestMismatch: they are not these variables.
        """
        manifest = Manifest.of_arrays(held)
        if manifest.named:
            missing = [name for name in manifest.names if name not in self._named]
            unknown = [name for name in self._named if name not in manifest.names]
            if missing or unknown:
                what = f"no {missing[0]!r}, which the server holds" if missing else f"{unknown[0]!r}, which it does not"
                raise ManifestMismatch(f"the model is not the server's: it has {what}; give layers the same names")
            self._named = {name: self._named[name] for name in manifest.names}
        described = [
            ModelTensor(label=f"variable {name}", shape=tuple(variable.shape), dtype="float32")
            for name, variable in self._named.items()
        ]
        check_held(described, held)

    def take(self, arrays: Sequence[Array]) -> None:
        """Have these values, outside any graph."""
        for variable, array in zip(self, arrays, strict=True):
            variable.assign(keras.ops.cast(keras.ops.convert_to_tensor(array), variable.dtype))


def number(value: Any) -> float:
    """Return a scalar of Keras, such as a counter or a learning rate, outside any graph."""
    return float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(value)))


def _named(variables: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield variables under their paths, which two layers of one name have in common: the later ones get a number."""
    seen: dict[str, int] = {}
    for variable in variables:
        count = seen[variable.path] = seen.get(variable.path, 0) + 1
        yield variable.path if count == 1 else f"{variable.path}#{count}", variable


def _check_holdable(name: str, variable: Any) -> None:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype not in _FLOATS:
        raise ConfigError(f"variable {name!r} is {dtype}; expected {', '.join(_FLOATS)}")
    if not all(variable.shape):
        raise ConfigError(f"variable {name!r} has shape {tuple(variable.shape)}; expected no empty dimension")
    if getattr(variable, "overwrite_with_gradient", False):
        raise ConfigError(f"variable {name!r} is overwritten with its gradient, which no server does: train in float16")
