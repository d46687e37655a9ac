"""A worker's own copy of the parameters, in memory that frameworks can take as their own."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
from numpy.typing import NDArray

from distnet._private.arrays import Array, Arrays
from distnet._private.manifest import Manifest
from distnet.frameworks.client_protocol import OptimizerClient

__all__ = ["ALIGNMENT_BYTES", "AlternatingReplica", "ClientReplica", "Replica"]

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
        arrays: the same arrays as the server structures its parameters.
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

    @property
    def out(self) -> Arrays | None:
        """What to give as ``out=``, for replies to go there; None: they do by themselves."""
        return self.arrays

    def structured(self, values: list[Array]) -> Arrays:
        """Return an array for each tensor as the server structures its parameters: by name, or as a list."""
        return self.manifest.structured(values)


class AlternatingReplica(Replica):
    """Pieces of memory that take replies in turns: two, and more while somebody still refers to the older ones.

    A framework that takes an array as its own memory refers to it for as long as anything reads there: an operation of
    a graph that runs late, or a tensor and a variable of the program's that were set from a parameter. A piece of which
    any array is referred to from outside is not written to.

    Args:
        initial: values to begin with, as ``Client.pull()`` returns them; they are copied.
    """

    def __init__(self, initial: Arrays) -> None:
        super().__init__(initial)
        self._pieces = [_Piece(self.tensors, self.arrays), self._new_piece()]
        self._current, self._next = 0, 1

    @property
    def out(self) -> Arrays:
        """What to give as ``out=``: a piece that nobody refers to; a new one where there is none."""
        others = (place for place in range(len(self._pieces)) if place != self._current)
        free = next((place for place in others if self._pieces[place].is_free()), None)
        if free is None:
            free = len(self._pieces)
            self._pieces.append(self._new_piece())
        self._next = free
        return self._pieces[free].arrays

    def turn(self) -> None:
        """Have in :attr:`tensors` what came into :attr:`out`; the next reply goes to another piece."""
        self._current = self._next
        piece = self._pieces[self._current]
        self.tensors, self.arrays = piece.tensors, piece.arrays

    def _new_piece(self) -> _Piece:
        made = Replica(self.arrays)
        return _Piece(made.tensors, made.arrays)


class _Piece:
    """A piece of memory, and how often its arrays are referred to where nobody else does."""

    def __init__(self, tensors: list[Array], arrays: Arrays) -> None:
        self.tensors, self.arrays = tensors, arrays
        self._own = self._references()

    def is_free(self) -> bool:
        """Return whether nobody outside refers to any of the arrays."""
        return all(seen <= own for seen, own in zip(self._references(), self._own, strict=True))

    def _references(self) -> list[int]:
        return [sys.getrefcount(tensor) for tensor in self.tensors]


class ClientReplica(Replica):
    """The memory that a client's replies go to by themselves: nothing is copied on the way into it.

    Args:
        client: whose :meth:`~distnet.Client.replica_arrays` these are. They hold what its newest reply held.
    """

    def __init__(self, client: OptimizerClient) -> None:
        self.arrays = client.replica_arrays()
        self.manifest = Manifest.of_arrays(self.arrays)
        self.tensors = list(self.manifest.flat(self.arrays))

    @property
    def out(self) -> None:
        """None: replies come here by themselves."""


def _page_lock(memory: NDArray[np.uint8]) -> None:
    for name in ("libcudart.so.12", "libcudart.so"):
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        runtime.cudaHostRegister(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), ctypes.c_uint(0))
        return
