"""The native parameter stores by themselves, for tests, benchmarks and embedding.

A store is a float32 vector with a guard and an optimizer that steps it: what a shard has inside, without sessions and
transports.
"""

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
        """Copy the parameters into an array, and return their version.

        Args:
            out: float32, shape (size,), C-contiguous and writable; it is overwritten.

        Returns:
            How many updates are in them. A read that mixes versions may hold parts of later ones.

        Raises:
            ManifestMismatch: ``out`` is another kind of array.
        """
        return self._native.read(out)

    def apply(self, gradient: npt.NDArray[np.float32]) -> None:
        """Apply one gradient.

        Args:
            gradient: float32, shape (size,), C-contiguous; it may be overwritten on return.

        Raises:
            NonFiniteGradient: it holds NaN or infinity. A MutexStore has applied nothing of it, a LockFreeStore what
                came before the first 64 elements that hold any (4,096 where the optimizer clips).
            ManifestMismatch: it is another kind of array.
        """
        self._native.apply(gradient)

    def add(self, change: npt.NDArray[np.float32]) -> None:
        """Add a change to the parameters: without optimizer, clipping or decay, except that ``OuterNesterov`` steps it.

        It counts as an update.

        Args:
            change: float32, shape (size,), C-contiguous; it may be overwritten on return.

        Raises:
            NonFiniteGradient: it holds NaN or infinity; see :meth:`apply`.
            ManifestMismatch: it is another kind of array.
        """
        self._native.add(change)

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

    Args:
        parameters: initial values, float32, shape (size,), C-contiguous; they are copied.
        optimizer: applied to every gradient.

    Raises:
        ManifestMismatch: ``parameters`` are another kind of array.

    Thread safety: any number of threads.

    Example:
        >>> store = distnet.MutexStore(np.zeros(2, np.float32), distnet.SGD(0.5))
        >>> store.apply(np.array([1, -2], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.tolist()
        (1, [-0.5, 1.0])
    """

    _make = _native.MutexStore


class LockFreeStore(_Store):
    """Parameters in place, without locks: no update is lost, no float is torn, a read may mix versions.

    :meth:`apply` may return before the last part of its update is visible. It is visible once no thread is in
    :meth:`apply`.

    Args:
        parameters: initial values, float32, shape (size,), C-contiguous; they are copied.
        optimizer: applied to every gradient.

    Raises:
        ManifestMismatch: ``parameters`` are another kind of array.

    Thread safety: any number of threads.

    Example:
        >>> import threading
        >>> store = distnet.LockFreeStore(np.zeros(2, np.float32), distnet.SGD(0.5))
        >>> gradient = np.array([1, -2], np.float32)
        >>> threads = [threading.Thread(target=store.apply, args=[gradient]) for _ in range(8)]
        >>> for thread in threads:
        ...     thread.start()
        >>> for thread in threads:
        ...     thread.join()
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.tolist()
        (8, [-4.0, 8.0])
    """

    _make = _native.LockFreeStore
