"""Tensors as the engine takes them: their dtype by its name, and their values in contiguous memory of the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from distnet.errors import ConfigError

__all__ = ["HostValues", "moved_as", "reduced_as", "same_dtype"]

# The dtypes that the engine reduces. It moves any other as bytes.
_REDUCED = {
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bool: "bool",
}
_NUMPY_VIEWS = {torch.bfloat16: torch.int16}  # what NumPy has no dtype for, as integers of the same width
_SAME_IN_NUMPY = frozenset(_REDUCED) - frozenset(_NUMPY_VIEWS)
_MOST_DIMENSIONS = 8  # that the engine's messages carry


def reduced_as(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and shape by which all ranks know a tensor that is reduced.

    Raises:
        ConfigError: the engine does not reduce this dtype.
    """
    name = _REDUCED.get(tensor.dtype)
    if name is None:
        raise ConfigError(
            f"a tensor of {tensor.dtype} cannot be reduced; expected one of {', '.join(_REDUCED.values())}"
        )
    return name, _shape(tensor)


def moved_as(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Return the same for a tensor that is only moved, which one of any other dtype is as rows of bytes."""
    name = _REDUCED.get(tensor.dtype)
    if name is not None:
        return name, _shape(tensor)
    rows = tensor.shape[0] if tensor.dim() else 1
    return "uint8", (rows, math.prod(tensor.shape[1:]) * tensor.element_size())


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.dim() <= _MOST_DIMENSIONS:
        return tuple(tensor.shape)
    return tensor.shape[0], math.prod(tensor.shape[1:])


def same_dtype(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """Return the dtype of all the tensors.

    Raises:
        ConfigError: there are none, or they differ.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1:
        seen = ", ".join(sorted(map(str, dtypes))) or "no tensor"
        raise ConfigError(f"tensors of one operation must have one dtype; there is {seen}")
    return dtypes.pop()


class HostValues:
    """The values of a tensor in contiguous memory of the host, which the engine reads and writes.

    That is the tensor's own memory where it lies so already. Otherwise it is a copy, page-locked for a tensor of CUDA,
    which :meth:`put_back` copies into the tensor once the engine has written it.

    Args:
        tensor: any strided tensor of the CPU or of CUDA.
        read: whether the engine reads the values, so that a copy needs them.

    Raises:
        ConfigError: the tensor is sparse or quantized, or on another device.
    """

    __slots__ = ("_host", "_stream", "_tensor")

    def __init__(self, tensor: torch.Tensor, *, read: bool) -> None:
        self._tensor = tensor = tensor.detach()
        self._stream: Any = None
        if tensor.layout is not torch.strided:
            raise ConfigError(
                f"a tensor's layout is {tensor.layout}; the backend takes dense ones: use .to_dense(), or sparse=False"
            )
        if tensor.device.type == "cpu":
            self._host = tensor if tensor.is_contiguous() else _copy(tensor, read=read, page_locked=False)
        elif tensor.device.type == "cuda":
            self._stream = torch.cuda.current_stream(tensor.device)
            self._host = _copy(tensor, read=read, page_locked=True)
        else:
            raise ConfigError(f"a tensor is on {tensor.device}; the backend takes tensors of the CPU and of CUDA")

    @property
    def flat(self) -> npt.NDArray[Any]:
        """The values as a NumPy array of one dimension, of the same item size. It keeps the memory alive."""
        flat = self._host.view(-1)
        dtype = flat.dtype
        if dtype in _SAME_IN_NUMPY:
            return flat.numpy()  # type: ignore[no-any-return]
        return flat.view(_NUMPY_VIEWS.get(dtype, torch.uint8)).numpy()  # type: ignore[no-any-return]

    @property
    def tensor(self) -> torch.Tensor:
        """The values as a contiguous tensor of the host."""
        return self._host

    @property
    def is_copy(self) -> bool:
        """Whether :meth:`put_back` has something to do."""
        return self._host is not self._tensor

    def put_back(self) -> None:
        """Copy what the engine has written into the tensor, and wait until it is there."""
        if self._stream is None:
            if self.is_copy:
                self._tensor.copy_(self._host)
            return
        with torch.cuda.stream(self._stream):  # after what this stream still does with the tensor's earlier values
            self._tensor.copy_(self._host)
        self._stream.synchronize()


def _copy(tensor: torch.Tensor, *, read: bool, page_locked: bool) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=page_locked)
    if read:
        host.copy_(tensor)  # waits for the stream on which the tensor is computed
    return host
