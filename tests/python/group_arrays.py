"""Arrays for the tests of process groups: made alike in every process, sent as JSON, and what NumPy makes of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
HALVES = ("float16", "bfloat16")
FLOATS = (*HALVES, "float32", "float64")
DTYPES = (*INTEGERS, *FLOATS, "bool")
OPS = ("sum", "average", "min", "max", "product")


def spec(
    shape: Sequence[int], dtype: str = "float32", *, seed: int = 1, low: int = -4, high: int = 5
) -> dict[str, Any]:
    """Return what :func:`made` makes an array of: whole numbers from `low` to `high` - 1, others on each rank."""
    return {"shape": list(shape), "dtype": dtype, "seed": seed, "low": low, "high": high}


def made(given: dict[str, Any], rank: int) -> Array:
    """Return the array that a rank brings; bfloat16 as the uint16 of its bits."""
    random = np.random.default_rng([given["seed"], rank])
    dtype = given["dtype"]
    low = 0 if dtype in ("uint8", "bool") else given["low"]
    whole = random.integers(low, 2 if dtype == "bool" else given["high"], given["shape"])
    if dtype == "bfloat16":
        return bfloat16_of(np.asarray(whole, np.float32))
    return np.asarray(whole, dtype)


def bfloat16_of(values: Array) -> Array:
    """Round float32 to bfloat16, to even, and return its bits as uint16."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(array: Array, dtype: str) -> Array:
    """Return what is reduced: halves in float32, bool as it is, the others in their own type."""
    if dtype == "bfloat16":
        return (np.asarray(array).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float32) if dtype == "float16" else np.asarray(array)


def narrowed(array: Array, dtype: str) -> Array:
    """Return a result in the type that ranks get."""
    return bfloat16_of(array) if dtype == "bfloat16" else np.asarray(array, dtype)


def reduced(arrays: Sequence[Array], op: str, dtype: str, prescale: float = 1.0, postscale: float = 1.0) -> Array:
    """Return what NumPy makes of all ranks' arrays, in the order of ranks."""
    terms = [widened(array, dtype) for array in arrays]
    if dtype in INTEGERS and (op == "average" or prescale != 1 or postscale != 1):
        terms = [term.astype(np.float64) for term in terms]
    kind = terms[0].dtype
    if dtype == "bool":
        total = np.logical_or.reduce(terms) if op in ("sum", "max") else np.logical_and.reduce(terms)
        return narrowed(total, dtype)
    if prescale != 1:
        terms = [term * kind.type(prescale) for term in terms]
    combine = {"sum": np.add, "average": np.add, "min": np.minimum, "max": np.maximum, "product": np.multiply}[op]
    total = terms[0].copy()
    for term in terms[1:]:
        total = combine(total, term, dtype=kind)
    if op == "average":
        total = total / kind.type(len(terms))
    if postscale != 1:
        total = total * kind.type(postscale)
    return narrowed(np.trunc(total) if dtype in INTEGERS and kind == np.float64 else total, dtype)


def shares(rows: int, size: int) -> list[int]:
    """Return how many rows each rank gets where nobody says so."""
    return [len(part) for part in np.array_split(np.arange(rows), size)]


def cut(array: Array, splits: Sequence[int]) -> list[Array]:
    """Return each rank's rows."""
    return np.split(array, np.cumsum(splits)[:-1])


def encoded(result: Any) -> Any:
    """Return a result of a group's operation as JSON takes it."""
    if isinstance(result, list):
        return [encoded(one) for one in result]
    if isinstance(result, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(result).tobytes()).decode()
        return {"dtype": result.dtype.name, "shape": list(result.shape), "data": data}
    return result


def decoded(result: Any) -> Any:
    """Return what :func:`encoded` was given; an array of bfloat16 as the uint16 of its bits."""
    if isinstance(result, list):
        return [decoded(one) for one in result]
    if isinstance(result, dict):
        dtype = "uint16" if result["dtype"] == "bfloat16" else result["dtype"]
        return np.frombuffer(base64.b64decode(result["data"]), dtype).reshape(result["shape"])
    return result


def assert_equal(actual: Any, expected: Array) -> None:
    """Hold a result to be equal in dtype, shape and every bit; bfloat16 as uint16."""
    assert isinstance(actual, np.ndarray)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == np.ascontiguousarray(expected).tobytes(), f"{actual} instead of {expected}"
