"""What the calls of a process group take: one array of a known type, where its result goes, and how it is split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from distnet._private.bounds import MOST_DIMENSIONS_IN_A_GROUP, MOST_GROUP_NAME_BYTES, check_whole
from distnet._private.suggestions import suggest
from distnet.errors import ConfigError

__all__ = [
    "DTYPES",
    "NUMPYS_DTYPES",
    "OPS",
    "AnyArray",
    "array_by_rank",
    "bytes_of",
    "check_name",
    "check_op",
    "check_out",
    "check_result",
    "check_rows",
    "checked_ranks",
    "checked_splits",
    "element_type",
    "usable_array",
]

AnyArray: TypeAlias = npt.NDArray[Any]

OPS = ("sum", "average", "min", "max", "product")
# The engine's name of each type of elements, by what NumPy calls kind and size.
DTYPES: Mapping[str, str] = {
    "u1": "uint8",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "b1": "bool",
}
_BFLOAT16 = "bfloat16"
# What arrays of them are in NumPy, which has no bfloat16 of its own.
NUMPYS_DTYPES = {name: np.dtype(name) for name in DTYPES.values()} | {_BFLOAT16: np.dtype(np.uint16)}
_REMEDIES = {"u2": "dtype='bfloat16' where it holds bfloat16, else .astype('int32')"}
_REMEDIES |= {"u4": ".astype('int64')", "u8": ".astype('int64')", "f16": ".astype('float64')"}


def usable_array(value: object, what: str = "the array") -> AnyArray:
    """Return what NumPy sees in `value` as a C-contiguous, aligned array of this machine's byte order.

    Taken are NumPy's arrays, with any strides, and its scalars, Python's numbers, and whatever says of itself what
    array it is, such as a tensor of PyTorch on the CPU. It is copied only where its memory cannot be used as it is.

    Raises:
        ConfigError: it is no such thing.
    """
    array = value if type(value) is np.ndarray else _viewed(value, what)
    if array.ndim > MOST_DIMENSIONS_IN_A_GROUP:
        raise ConfigError(f"{what} has {array.ndim} dimensions; expected at most {MOST_DIMENSIONS_IN_A_GROUP}")
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def element_type(dtype: np.dtype[Any], shape: tuple[int, ...], given: object, what: str = "the array") -> str:
    """Return the engine's name of an array's elements.

    Args:
        dtype: of the array, as NumPy has it.
        shape: of the array, for the message.
        given: what the caller says that they are; None: what NumPy says.
        what: the message calls the array.

    Raises:
        ConfigError: collectives do not take these, or `given` is something else than they are.
    """
    code = dtype.str[1:]
    is_bfloat16 = dtype.name == _BFLOAT16 and dtype.itemsize == 2
    own = _BFLOAT16 if is_bfloat16 else DTYPES.get(code)
    if given is not None:
        if given == own or (given == _BFLOAT16 and code == "u2"):
            return str(given)
        raise ConfigError(
            f"dtype is {given!r}, and {what} is {dtype} {shape}; expected None, or 'bfloat16' for a uint16 array "
            "that holds the bits of bfloat16"
        )
    if own is None:
        remedy = f": use {_REMEDIES[code]}" if code in _REMEDIES else ""
        raise ConfigError(f"{what} is {dtype} {shape}; expected {', '.join(DTYPES.values())} or bfloat16{remedy}")
    return own


def bytes_of(array: AnyArray) -> AnyArray:
    """Return a contiguous array's memory as a flat view of uint8, which has a buffer whatever its elements are."""
    return array.reshape(-1).view(np.uint8)


def check_out(out: object) -> AnyArray:
    """Return `out`, to which a result can be written where it lies.

    Raises:
        ConfigError: it is no array of NumPy, read-only, or not C-contiguous.
    """
    expected = "expected a writable, C-contiguous array of NumPy"
    if not isinstance(out, np.ndarray):
        raise ConfigError(f"out is {_a(out)}; {expected}")
    flags = out.flags
    if not (flags.c_contiguous and flags.aligned and flags.writeable and out.dtype.isnative):
        why = "is read-only" if not flags.writeable else "does not lie in one piece, in C order"
        raise ConfigError(f"out {why}; {expected}" if out.dtype.isnative else f"out is {out.dtype}; {expected}")
    return out


def check_result(out: AnyArray, array: AnyArray, shape: tuple[int, ...]) -> None:
    """Refuse an `out` that is not of the result's dtype and shape, or shares but a part of the array's memory.

    Args:
        out: as :func:`check_out` returns it.
        array: that goes in, of the result's dtype.
        shape: of the result.

    Raises:
        ConfigError: it is one of these.
    """
    if out.dtype != array.dtype or out.shape != shape:
        raise ConfigError(f"out is {out.dtype} {out.shape}; expected {array.dtype} {shape}, as the result is")
    is_whole = out.ctypes.data == array.ctypes.data and out.nbytes == array.nbytes
    if not is_whole and _overlap(out, array):
        raise ConfigError("out shares a part of the array's memory; expected the array itself, or other memory")


def check_rows(out: AnyArray, array: AnyArray) -> None:
    """Refuse an `out` that cannot hold the rows of all ranks' arrays, or shares memory with this rank's.

    Raises:
        ConfigError: it is one of these.
    """
    row = array.shape[1:]
    if out.dtype != array.dtype or out.ndim != len(row) + 1 or out.shape[1:] != row:
        rows = ", ".join(["rows of all ranks", *map(str, row)])
        raise ConfigError(f"out is {out.dtype} {out.shape}; expected {array.dtype} ({rows})")
    if _overlap(out, array):
        raise ConfigError("out shares a part of the array's memory; expected other memory")


def _overlap(out: AnyArray, array: AnyArray) -> bool:
    begins, other = out.ctypes.data, array.ctypes.data
    return begins < other + array.nbytes and other < begins + out.nbytes


def check_op(op: object, dtype: str, prescale: object, postscale: object) -> None:
    """Raise ConfigError unless elements of this type can be reduced so."""
    if op not in OPS:
        raise ConfigError(f"op is {op!r}{suggest(str(op), OPS)}")
    for name, scale in (("prescale", prescale), ("postscale", postscale)):
        is_number = not isinstance(scale, bool | str) and hasattr(scale, "__float__")
        if not is_number or not math.isfinite(float(scale)):  # type: ignore[arg-type]
            raise ConfigError(f"{name} is {scale!r}; expected a finite number")
        if dtype == "bool" and scale != 1:
            raise ConfigError(f"{name} is {scale!r}, and the array is bool; use .astype('float32') to scale it")
    if dtype == "bool" and op == "average":
        raise ConfigError("op is 'average', and the array is bool; use .astype('float32') to average it")


def checked_splits(splits: object, array: AnyArray, size: int, what: str = "the array") -> list[int]:
    """Return how many rows of an array each rank gets.

    Args:
        splits: a number of rows for each rank; None: as even as can be, the first ranks one more.
        array: with one dimension at least.
        size: of the group.
        what: the message calls the array.

    Raises:
        ConfigError: they are no such numbers, or do not add up to the rows.
    """
    if array.ndim == 0:
        raise ConfigError(f"{what} has no dimension to split along; expected at least one, of rows for each rank")
    rows = array.shape[0]
    if splits is None:
        return [rows // size + (rank < rows % size) for rank in range(size)]
    given = splits.tolist() if isinstance(splits, np.ndarray) else splits
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) != size:
        raise ConfigError(f"splits is {splits!r}; expected a number of rows for each of the {size} ranks")
    for number in given:
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"splits holds {number!r}; expected whole numbers, 0 or above")
    if sum(given) != rows:
        raise ConfigError(f"splits add up to {sum(given)}, and {what} has {rows} rows; expected every row in one split")
    return [int(number) for number in given]


def array_by_rank(array: AnyArray, rows: Sequence[int], *, scalars: bool) -> list[AnyArray]:
    """Return the rows of each rank, as views; without dimensions where all ranks brought scalars."""
    ends = np.cumsum(rows).tolist()
    parts = [array[end - count : end] for end, count in zip(ends, rows, strict=True)]
    return [part.reshape(()) if scalars and len(part) else part for part in parts]


def checked_ranks(ranks: object, size: int) -> list[int]:
    """Return the ranks of a part of a group, in the order in which they were given.

    Raises:
        ConfigError: they are no ranks of a group of this size, or one stands twice.
    """
    given = list(ranks) if isinstance(ranks, Sequence | range | np.ndarray | set | frozenset) else []
    if isinstance(ranks, set | frozenset):
        given = sorted(given)
    if not given or isinstance(ranks, str | bytes):
        raise ConfigError(f"ranks is {ranks!r}; expected a list of ranks, at least one")
    found = [int(rank) if isinstance(rank, np.integer) else rank for rank in given]
    for rank in found:
        check_whole("one of ranks", rank, 0, size - 1)
    if len(set(found)) != len(found):
        raise ConfigError(f"ranks is {ranks!r}; expected each rank once")
    return found


def check_name(name: object, what: str = "name") -> None:
    """Raise ConfigError unless it is a text of a length that travels."""
    if not isinstance(name, str):
        raise ConfigError(f"{what} is {name!r}; expected a text")
    length = len(name.encode(errors="replace"))
    if not 1 <= length <= MOST_GROUP_NAME_BYTES or not name.isprintable():
        shown = repr(name if len(name) <= 80 else name[:80] + "…")
        raise ConfigError(
            f"{what} is {shown}, of {length:,} bytes; expected 1 to {MOST_GROUP_NAME_BYTES:,} printable ones"
        )


def _viewed(value: Any, what: str) -> AnyArray:
    if isinstance(value, np.ma.MaskedArray):
        raise ConfigError(f"{what} is a masked array; expected plain values: use .filled(0)")
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        return np.asarray(value)
    if isinstance(value, list | tuple | Mapping):
        raise ConfigError(
            f"{what} is {_a(value)}; an operation takes one array: use numpy.asarray(value), or begin one for each"
        )
    if value is None or isinstance(value, str | bytes):
        raise ConfigError(f"{what} is {_a(value)}; expected an array")
    if hasattr(value, "detach"):  # of PyTorch: an array is no part of the graph
        value = value.detach()
    try:
        array = np.asarray(value)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{what} is {_a(value)} that NumPy cannot view: {reason}") from error
    if array.dtype.hasobject:
        raise ConfigError(f"{what} is {_a(value)}, which NumPy cannot view; expected an array")
    return array


def _a(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
