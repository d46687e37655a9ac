"""AlexNet as TensorFlow's old CIFAR-10 tutorial and the 2017 project had it: its tensors and their initial values.

::

    24 × 24 × 3 → conv 5×5×64, ReLU, max-pool 3×3/2, LRN → conv 5×5×64, ReLU, LRN, max-pool 3×3/2
                → dense 384, ReLU → dense 192, ReLU → linear 10

1,068,298 parameters in 10 tensors, all of them float32. What computes with them is
:mod:`distnet.alexnet.network_tensorflow`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from distnet._private.arrays import Array
from distnet.errors import ManifestMismatch

__all__ = ["CLASSES", "DECAYED", "INPUT_PIXELS", "TENSORS", "TensorSpec", "in_order", "initial_parameters"]

CLASSES: Final = 10
INPUT_PIXELS: Final = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A parameter tensor: its shape, and how it begins.

    Attributes:
        shape: convolutions as height, width, channels in, channels out; dense layers as in, out.
        deviation: of the normal distribution, truncated at twice this, that weights are drawn from; 0 for a constant.
        constant: what biases begin with.
        decayed: whether the L2 penalty holds for it.
    """

    shape: tuple[int, ...]
    deviation: float = 0.0
    constant: float = 0.0
    decayed: bool = False


TENSORS: Final[dict[str, TensorSpec]] = {
    "conv1/kernel": TensorSpec(shape=(5, 5, 3, 64), deviation=0.05),
    "conv1/bias": TensorSpec(shape=(64,)),
    "conv2/kernel": TensorSpec(shape=(5, 5, 64, 64), deviation=0.05),
    "conv2/bias": TensorSpec(shape=(64,), constant=0.1),
    "dense1/kernel": TensorSpec(shape=(2304, 384), deviation=0.04, decayed=True),
    "dense1/bias": TensorSpec(shape=(384,), constant=0.1),
    "dense2/kernel": TensorSpec(shape=(384, 192), deviation=0.04, decayed=True),
    "dense2/bias": TensorSpec(shape=(192,), constant=0.1),
    "linear/kernel": TensorSpec(shape=(192, CLASSES), deviation=1 / 192),
    "linear/bias": TensorSpec(shape=(CLASSES,)),
}

DECAYED: Final = tuple(index for index, spec in enumerate(TENSORS.values()) if spec.decayed)


def initial_parameters(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return the parameters that training begins with, by name in the order of :data:`TENSORS`.

    The same seed gives the same arrays everywhere: NumPy draws them, no framework.
    """
    generator = np.random.default_rng(seed)
    return {name: _initial(spec, generator) for name, spec in TENSORS.items()}


def in_order(arrays: Mapping[str, Array] | Sequence[Array]) -> list[Array]:
    """Return AlexNet's parameters in the order of :data:`TENSORS`.

    Args:
        arrays: by name, or in that order.

    Raises:
        ManifestMismatch: they are not AlexNet's.
    """
    if isinstance(arrays, Mapping):
        if set(arrays) != set(TENSORS):
            raise ManifestMismatch(
                f"expected AlexNet's tensors, named {', '.join(TENSORS)}; got {', '.join(sorted(arrays))}"
            )
        arrays = [arrays[name] for name in TENSORS]
    shapes = [tuple(array.shape) for array in arrays]
    expected = [spec.shape for spec in TENSORS.values()]
    if shapes != expected:
        raise ManifestMismatch(f"expected AlexNet's tensors of shapes {expected}; got {shapes}")
    return list(arrays)


def _initial(spec: TensorSpec, generator: np.random.Generator) -> NDArray[np.float32]:
    if spec.deviation == 0.0:
        return np.full(spec.shape, spec.constant, np.float32)
    values = generator.standard_normal(int(np.prod(spec.shape)), np.float32)
    while (outside := np.flatnonzero(np.abs(values) > 2.0)).size:
        values[outside] = generator.standard_normal(outside.size, np.float32)
    return (values * np.float32(spec.deviation)).reshape(spec.shape)
