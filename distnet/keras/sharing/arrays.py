"""Shares of arrays: NumPy's, tensors of every backend, columns of pandas; alone or in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distnet.errors import ConfigError
from distnet.keras.sharing.share import Share

__all__ = ["is_made_of_arrays", "share_of_arrays"]

_PLAIN = (str, bytes, bytearray, memoryview, range)  # they have a length, and are no data of a model


def is_made_of_arrays(data: Any) -> bool:
    """Return whether it is an array, or a tuple, list or dict in which there are arrays and otherwise None alone."""
    leaves: list[Any] = []
    _mapped(data, leaves.append)
    return bool(leaves) and all(_is_array(leaf) for leaf in leaves)


def share_of_arrays(data: Any, share: Share) -> Any:
    """Return this worker's examples of each array, in the structure that they came in; those of NumPy are views.

    Raises:
        ConfigError: arrays of differing lengths, or fewer examples than workers.
    """
    lengths: list[int] = []
    _mapped(data, lambda array: lengths.append(int(array.shape[0])))
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"the arrays have {', '.join(map(str, lengths))} examples; expected as many in each: a call of shard() "
            "takes what belongs to the same examples, so share training and validation data by a call each"
        )
    span = share.span(lengths[0], "examples")
    return _mapped(data, lambda array: array.iloc[span] if hasattr(array, "iloc") else array[span])


def _is_array(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    if isinstance(value, _PLAIN) or shape is None or not hasattr(value, "__getitem__"):
        return False
    return len(shape) > 0 and shape[0] is not None


def _mapped(data: Any, function: Callable[[Any], Any]) -> Any:
    """Return the structure with what a function makes of each leaf; None stays None, as sample weights may be."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {key: _mapped(value, function) for key, value in data.items()}
    if isinstance(data, tuple | list):
        values = [_mapped(value, function) for value in data]
        return type(data)(*values) if hasattr(data, "_fields") else type(data)(values)
    return function(data)
