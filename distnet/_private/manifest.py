"""Names and shapes of a model's tensors, and how arrays of them are structured: as a list, or by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distnet._private.arrays import Array, Arrays, ArraysLike
from distnet.errors import ManifestMismatch

__all__ = ["Manifest"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The tensors of a model, in order. All of them are float32.

    Attributes:
        named: whether the model is a dict of arrays; else it is a list of them.
        names: of the tensors; ``"0"``, ``"1"``, … in a list.
        shapes: of the tensors.
    """

    named: bool
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of_engine(cls, manifest: Mapping[str, Any]) -> Manifest:
        """Return what the native module's ``manifest()`` says."""
        tensors = manifest["tensors"]
        return cls(
            named=manifest["named"], names=tuple(name for name, *_ in tensors), shapes=tuple(s for _, s, *_ in tensors)
        )

    @classmethod
    def of_arrays(cls, arrays: ArraysLike) -> Manifest:
        """Return the tensors that arrays stand for, such as those that ``Client.pull()`` returns."""
        named = isinstance(arrays, Mapping)
        values = list(arrays.values()) if isinstance(arrays, Mapping) else list(arrays)
        names = tuple(arrays) if isinstance(arrays, Mapping) else tuple(str(index) for index in range(len(values)))
        return cls(named=named, names=names, shapes=tuple(value.shape for value in values))

    def empty_arrays(self) -> list[Array]:
        """Return an array for each tensor, with no values yet."""
        return [np.empty(shape, np.float32) for shape in self.shapes]

    def structured(self, arrays: list[Array]) -> Arrays:
        """Return a list of arrays, one for each tensor, as the model is structured."""
        return dict(zip(self.names, arrays, strict=True)) if self.named else arrays

    def flat(self, arrays: ArraysLike) -> Sequence[Array]:
        """Return arrays in the order of the tensors; a sequence is taken to be in that order.

        Raises:
            ManifestMismatch: a dict has other names than the model's.
        """
        if not isinstance(arrays, Mapping):
            return arrays
        if len(arrays) != len(self.names) or not all(name in arrays for name in self.names):
            known = set(self.names)
            missing = [name for name in self.names if name not in arrays]
            unknown = [name for name in arrays if name not in known]
            raise ManifestMismatch(f"names of another model: missing {missing[:5]}, unknown {unknown[:5]}")
        return [arrays[name] for name in self.names]

    def check_destination(self, out: ArraysLike) -> None:
        """Raise ManifestMismatch unless parameters can be written to these arrays."""
        arrays: Sequence[Any] = self.flat(out)
        if len(arrays) != len(self.shapes):
            raise ManifestMismatch(f"out= holds {len(arrays)} arrays; the model has {len(self.shapes)} tensors")
        for name, shape, array in zip(self.names, self.shapes, arrays, strict=True):
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
                raise ManifestMismatch(f"out= for tensor {name!r} is no float32 array of shape {shape}")
            if not (array.flags.writeable and array.flags.c_contiguous):
                raise ManifestMismatch(f"out= for tensor {name!r} must be writable and C-contiguous")
            if not array.flags.aligned:
                raise ManifestMismatch(
                    f"out= for tensor {name!r} is not aligned: it does not start on a multiple of 4 bytes; pass one "
                    "made by numpy.empty(shape, 'float32')"
                )
