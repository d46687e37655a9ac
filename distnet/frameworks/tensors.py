"""Whether a model's trainable tensors are such as a server can hold, those that it holds, and have gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distnet._private.arrays import Array, ArraysLike
from distnet._private.manifest import Manifest
from distnet.errors import ConfigError, ManifestMismatch

__all__ = ["ModelTensor", "check_gradients", "check_held", "check_holdable"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelTensor:
    """A trainable tensor of a model, as its framework describes it.

    Attributes:
        label: what messages call it, such as ``"variable dense/kernel"``.
        shape: of the tensor.
        dtype: its name in NumPy, such as ``"float32"``.
    """

    label: str
    shape: tuple[int, ...]
    dtype: str


def check_holdable(tensors: Sequence[ModelTensor]) -> None:
    """Raise ConfigError unless a server can hold each tensor: it is float32 and has no empty dimension."""
    for tensor in tensors:
        if tensor.dtype != "float32":
            raise ConfigError(f"{tensor.label} is {tensor.dtype}; a server holds float32 only")
        if not all(tensor.shape):
            raise ConfigError(f"{tensor.label} has shape {tensor.shape}; expected no empty dimension")


def check_held(tensors: Sequence[ModelTensor], arrays: ArraysLike) -> None:
    """Raise ManifestMismatch unless the server's arrays have the shapes of the model's tensors, in the same order."""
    held = Manifest.of_arrays(arrays)
    if len(held.shapes) != len(tensors):
        raise ManifestMismatch(
            f"the server holds {len(held.shapes)} tensors, the model {len(tensors)} trainable ones; start the server "
            "with this model's initial values"
        )
    for name, shape, tensor in zip(held.names, held.shapes, tensors, strict=True):
        if shape != tensor.shape:
            raise ManifestMismatch(
                f"the server's tensor {name} has shape {shape}, the model's {tensor.label} {tensor.shape}; their "
                "orders or their models differ"
            )


def check_gradients(tensors: Sequence[ModelTensor], gradients: Sequence[Array | None]) -> list[Array]:
    """Return the gradients, if there is one for each of the model's tensors, of its shape.

    Raises:
        ConfigError: another number of gradients, None in place of one, or another shape.
    """
    if len(gradients) != len(tensors):
        raise ConfigError(
            f"there are {len(gradients)} gradients for {len(tensors)} trainable tensors; expected one for each, in "
            "the same order"
        )
    checked = []
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None:
            raise ConfigError(
                f"{tensor.label} has no gradient: the loss does not depend on it; train without it, here and at the "
                "server, or give it a gradient of zeros"
            )
        if gradient.shape != tensor.shape:
            raise ConfigError(f"the gradient of {tensor.label} has shape {gradient.shape}; expected {tensor.shape}")
        checked.append(gradient)
    return checked
