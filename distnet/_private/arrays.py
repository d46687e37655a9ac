"""How a model's arrays are given and returned: by position or by name, float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from distnet._private.bounds import MOST_NAME_BYTES
from distnet.errors import ManifestMismatch

__all__ = ["Array", "Arrays", "ArraysLike", "ParametersLike", "float32_array", "named_arrays", "named_parameters"]

Array: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = "list[Array] | dict[str, Array]"
ArraysLike: TypeAlias = "Sequence[Array] | Mapping[str, Array]"
# Initial values, which may be of other floating-point types.
ParametersLike: TypeAlias = "Sequence[npt.NDArray[np.floating[Any]]] | Mapping[str, npt.NDArray[np.floating[Any]]]"

_FLOAT32 = np.dtype(np.float32)
_CAST = ("float16", "bfloat16", "float64")  # by NumPy's names; bfloat16 is that of ml_dtypes
_VIEWED_BY = ("__array__", "__array_interface__", "__array_struct__")


def named_arrays(arrays: ArraysLike) -> tuple[bool, list[tuple[str, Array]]]:
    """Return whether the arrays have names of their own, and (name, float32 array) pairs in order.

    The arrays are C-contiguous and aligned: copies where what was given is not.

    Raises:
        ManifestMismatch: an element is nothing that :func:`float32_array` takes, a name is no string, or `arrays` are
            neither a list nor a dict of arrays.
    """
    named, items = _items(arrays)
    return named, [(name, float32_array(value, f"tensor {name!r}")) for name, value in items]


def named_parameters(arrays: ParametersLike) -> tuple[bool, list[tuple[str, Array]]]:
    """Return a model's initial values as :func:`named_arrays` does, cast to float32 where they are other floats.

    Raises:
        ManifestMismatch: as there, for integers, and for a value that float32 cannot hold.
    """
    named, items = _items(arrays)
    return named, [(name, _as_float32(value, f"tensor {name!r}")) for name, value in items]


def _items(given: object) -> tuple[bool, list[tuple[str, object]]]:
    """Return whether the elements have names of their own, and (name, element) pairs in order."""
    items: list[tuple[str, object]]
    if isinstance(given, Mapping):
        items = [(_checked_name(name), value) for name, value in given.items()]
    elif isinstance(given, str | bytes) or not isinstance(given, Iterable) or _is_viewed(given):
        raise ManifestMismatch(
            f"{_a(given)} stands for the parameters; expected a list of float32 arrays, or a dict of them, "
            "such as dict(module.named_parameters()); for one array pass [array]"
        )
    else:
        items = [(str(index), value) for index, value in enumerate(given)]
    return isinstance(given, Mapping), items


def float32_array(value: object, what: str, shape: tuple[int, ...] | None = None) -> Array:
    """Return what NumPy sees in `value`, if that needs no guess, as a C-contiguous and aligned float32 array.

    Taken are NumPy's arrays and scalars of float32, in any order, with any strides and of either byte order, and
    whatever NumPy can view as such: tensors of PyTorch on the CPU (detached), variables of Keras, buffers.

    Args:
        value: copied only where its memory cannot be used as it is.
        what: what messages call it, such as ``"tensor 'w'"``.
        shape: that it must have; None: any.

    Raises:
        ManifestMismatch: another dtype or shape, or nothing that NumPy can view; it says what to do.
    """
    array = _viewed(value, what)
    expected = "expected float32" if shape is None else f"the model's is float32 {shape}"
    if array.dtype.kind != "f" or array.dtype.itemsize != _FLOAT32.itemsize:
        remedy = ".float()" if hasattr(value, "detach") else ".astype('float32')"
        raise ManifestMismatch(f"{what} is {array.dtype} {array.shape}; {expected}: use {remedy}")
    if shape is not None and array.shape != shape:
        fits = array.size == np.prod(shape, dtype=np.int64)
        remedy = f"use .reshape({shape}) if it is meant" if fits else "it is another tensor's, or another model's"
        raise ManifestMismatch(f"{what} is float32 {array.shape}; {expected}: {remedy}")
    if array.dtype is _FLOAT32 and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.array(array, _FLOAT32, order="C")


def _as_float32(value: Any, what: str) -> Array:
    """Return a parameter's initial value, cast where it is of another floating-point type than float32."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # NumPy has no view of it
        value = value.detach().float()
    array = _viewed(value, what)
    if array.dtype.name not in _CAST:
        if array.dtype.kind in "iub":
            raise ManifestMismatch(
                f"{what} is {array.dtype} {array.shape}; parameters are floating-point numbers, and a server holds "
                "them as float32: leave it out where it is no parameter, else cast it to a float yourself"
            )
        return float32_array(value, what)
    with np.errstate(over="ignore"):
        cast = np.asarray(array, np.float32, order="C")
    if np.isinf(cast).sum() != np.isinf(array).sum():
        raise ManifestMismatch(f"{what} is {array.dtype} and holds values that float32 cannot: scale or clip them")
    return cast


def _viewed(value: Any, what: str) -> npt.NDArray[Any]:
    """Return NumPy's view of a value that says of itself what array it is."""
    if isinstance(value, np.ma.MaskedArray):
        raise ManifestMismatch(f"{what} is a masked array; expected plain values: use .filled(0)")
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if not _is_viewed(value):
        raise ManifestMismatch(f"{what} is {_not_an_array(value)}")
    if hasattr(value, "detach"):  # of PyTorch: an array is no part of the graph
        value = value.detach()
    try:
        return np.asarray(value)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ManifestMismatch(f"{what} is {_a(value)} that NumPy cannot view: {reason}") from error


def _is_viewed(value: object) -> bool:
    """Return whether the value has a way of its own for NumPy to see it; numbers and lists have none."""
    if any(hasattr(value, way) for way in _VIEWED_BY):
        return True
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _not_an_array(value: object) -> str:
    if value is None:
        return "None; expected a float32 array: zeros where the loss does not depend on the tensor"
    if isinstance(value, Mapping):
        return f"{_a(value)}; a model's tensors stand side by side: use names such as 'layer/w'"
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return "a pair of a name and a value; expected a float32 array: make the pairs a dict"
    if isinstance(value, int | float | Sequence):
        return f"{_a(value)}; expected a float32 array: use numpy.asarray(value, 'float32')"
    return f"{_a(value)}, which NumPy cannot view; expected a float32 array"


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise ManifestMismatch(
            f"a tensor's name is {name!r}, {_a(name)}; expected strings: join or convert the keys of the dict"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ManifestMismatch(f"a tensor's name is {name!r}; expected text that UTF-8 can write") from error
    if not 1 <= len(name.encode()) <= MOST_NAME_BYTES:
        shown = repr(name if len(name) <= 80 else name[:80] + "…")
        raise ManifestMismatch(
            f"the tensor's name {shown} has {len(name.encode()):,} bytes; expected 1 to {MOST_NAME_BYTES:,}"
        )
    return str(name)


def _a(value: object) -> str:
    """Return the name of a value's type with its article, such as ``"an int"``."""
    name = _type_name(value)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _type_name(value: object) -> str:
    return type(value).__name__
