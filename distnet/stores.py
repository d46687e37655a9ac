"""The native parameter stores by themselves, for tests, benchmarks and embedding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distnet import _native
from distnet.optimizers import Optimizer

__all__ = ["LockFreeStore", "MutexStore"]


class _Store:
    _make: type[_native.MutexStore] | type[_native.LockFreeStore]

    def __init__(self, parameters: npt.NDArray[np.float32], optimizer: Optimizer) -> None:
        self._native = self._make(parameters, optimizer.to_spec())

    def read(self, out: npt.NDArray[np.float32]) -> int:
        """Copy the parameters into `out` (float32, shape (size,), C-contiguous) and return their version."""
        return self._native.read(out)

    def apply(self, gradient: npt.NDArray[np.float32]) -> None:
        """Apply one gradient (float32, shape (size,), C-contiguous), which may be overwritten on return.

        Raises:
            NonFiniteGradient: it holds NaN or infinity. A MutexStore has applied nothing of it, a LockFreeStore what
                came before the first 64 elements that hold any (4,096 where the optimizer clips).
        """
        self._native.apply(gradient)

    @property
    def version(self) -> int:
        """How many updates readers can see."""
        return self._native.version

    @property
    def size(self) -> int:
        """Number of float32 elements."""
        return self._native.size


class MutexStore(_Store):
    """Parameters behind a mutex: every read is one version, and waits for no update.

    `parameters`: float32, shape (size,), C-contiguous; copied. Raises ManifestMismatch on anything else.
    Thread-safety: any number of threads.
    """

    _make = _native.MutexStore


class LockFreeStore(_Store):
    """Parameters in place, without locks: no update is lost, no float is torn, a read may mix versions.

    `parameters`: float32, shape (size,), C-contiguous; copied. Raises ManifestMismatch on anything else.
    ``apply`` may return before the last part of its update is visible; it is once no thread is in ``apply``.
    Thread-safety: any number of threads.
    """

    _make = _native.LockFreeStore
