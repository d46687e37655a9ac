"""A worker's own copy of the parameters, in memory that frameworks can take as their own."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from distnet._private.arrays import Array, Arrays
from distnet._private.manifest import Manifest

__all__ = ["ALIGNMENT_BYTES", "Replica"]

ALIGNMENT_BYTES = 64  # TensorFlow aborts on aliased memory that begins elsewhere; a cache line, too


class Replica:
    """Memory for the parameters, in one piece: the client writes replies to it, and a framework reads them there.

    Where a framework's own variables share the memory of :attr:`tensors`, a reply is in them without a copy. The memory
    lives as long as any of its arrays does.

    Args:
        initial: values to begin with, as ``Client.pull()`` returns them; they are copied.
        page_locked: whether the memory goes to a GPU. Where CUDA's runtime library is not found it stays pageable,
            which is slower and not wrong.

    Attributes:
        manifest: names and shapes of the tensors.
        tensors: an array for each tensor, in order. Each begins on a multiple of :data:`ALIGNMENT_BYTES`.
        arrays: the same arrays as the server structures its parameters: what to give as ``out=``.
    """

    def __init__(self, initial: Arrays, *, page_locked: bool = False) -> None:
        self.manifest = Manifest.of_arrays(initial)
        values = list(self.manifest.flat(initial))
        sizes = [-(-value.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for value in values]
        memory = np.zeros(sum(sizes) + ALIGNMENT_BYTES, np.uint8)
        if page_locked:
            _page_lock(memory)
        start = -memory.ctypes.data % ALIGNMENT_BYTES
        self.tensors: list[Array] = []
        for value, size in zip(values, sizes, strict=True):
            own = memory[start : start + value.nbytes].view(np.float32).reshape(value.shape)
            np.copyto(own, value)
            self.tensors.append(own)
            start += size
        self.arrays: Arrays = self.structured(self.tensors)

    def structured(self, values: list[Array]) -> Arrays:
        """Return an array for each tensor as the server structures its parameters: by name, or as a list."""
        return self.manifest.structured(values)


def _page_lock(memory: NDArray[np.uint8]) -> None:
    for name in ("libcudart.so.12", "libcudart.so"):
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        runtime.cudaHostRegister(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), ctypes.c_uint(0))
        return
