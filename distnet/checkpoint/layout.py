"""The layout of a checkpoint's file: which names its tensors have, where they lie, and what stands in its header.

The one owner of both ways, from a model to bytes and back; docs/reference/checkpoints.md describes them. Everything
that comes from a file is checked here before anybody uses it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from distnet._private.bounds import MOST_DIMENSIONS, MOST_FLOATS
from distnet.errors import CheckpointError, ConfigError

__all__ = ["Layout", "Vector", "decode_header", "encode_header", "layout_of"]

Shape: TypeAlias = "tuple[int, ...]"

VERSION = 1
LENGTH_BYTES = 8  # the header's length, before it
MOST_HEADER_BYTES = 100_000_000  # what the safetensors package reads
ALIGN_BYTES = 64  # where the data begin; safetensors asks for 8
DIGITS = 8  # of the checksum
_VERSION_KEY = '{"__metadata__":{"distnet_checkpoint":"'
_CHECKSUM_KEY = f'{_VERSION_KEY}{VERSION}","checksum":"crc32 '
START = _CHECKSUM_KEY.encode()  # each file's header begins so: the digits of its checksum have one place
DIGITS_AT = LENGTH_BYTES + len(START)
_ITEM_BYTES = 4
_PARAMETERS, _EMA = "parameters", "ema"


@dataclasses.dataclass(frozen=True)
class Vector:
    """One of the vectors of a state: a tensor for each of the model's.

    Args:
        kind: ``"parameters"``, ``"ema"``, or the name of an optimizer's state vector, such as ``"exp_avg"``.
        prefix: what stands before the model's own names in the file; empty for the parameters.
    """

    kind: str
    prefix: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which tensors a file holds, in the order in which they lie one behind another, without a gap.

    Args:
        tensors: name and shape of each of the model's tensors.
        vectors: the parameters, their EMA where one is kept, then the optimizer's state.
        saved_bytes: how many bytes the last tensor has: what workers saved. 0: there is none.
    """

    tensors: tuple[tuple[str, Shape], ...]
    vectors: tuple[Vector, ...]
    saved_bytes: int = 0

    @property
    def vectors_bytes(self) -> int:
        """How many bytes all vectors have."""
        return len(self.vectors) * sum(_size_bytes(shape) for _, shape in self.tensors)

    @property
    def data_bytes(self) -> int:
        """How many bytes all tensors have."""
        return self.vectors_bytes + self.saved_bytes

    @property
    def has_ema(self) -> bool:
        """Whether one of the vectors is the EMA: the second."""
        return len(self.vectors) > 1 and self.vectors[1].kind == _EMA

    def offsets(self) -> list[list[int]]:
        """Return where the tensors of each vector begin.

        Returns:
            For each vector a list, in bytes from the first tensor of all.
        """
        at, offsets = 0, []
        for _ in self.vectors:
            of_vector = []
            for _, shape in self.tensors:
                of_vector.append(at)
                at += _size_bytes(shape)
            offsets.append(of_vector)
        return offsets


def layout_of(tensors: Sequence[tuple[str, Shape]], *, ema: bool, state: Sequence[str]) -> Layout:
    """Return the layout of a model's state.

    Args:
        tensors: name and shape of each of the model's tensors.
        ema: whether an EMA is kept.
        state: names of the optimizer's vectors.

    Returns:
        The layout, without what workers saved.

    Raises:
        ConfigError: a tensor has a name that the file's format has for itself.
    """
    names = [name for name, _ in tensors]
    if "__metadata__" in names:
        raise ConfigError("a tensor is named '__metadata__', which no safetensors file can hold; give it another name")
    prefixes = {kind: f"optimizer/{kind}/" for kind in state} | ({_EMA: "ema/"} if ema else {})
    order = [*([_EMA] if ema else []), *state]
    vectors = [Vector(_PARAMETERS, ""), *(Vector(kind, _free_prefix(prefixes[kind], names)) for kind in order)]
    return Layout(tensors=tuple(tensors), vectors=tuple(vectors))


def _saved_name(tensors: Sequence[tuple[str, Shape]]) -> str:
    names, name = {name for name, _ in tensors}, "saved"
    while name in names:
        name = f"_{name}"
    return name


def _free_prefix(prefix: str, names: Sequence[str]) -> str:
    """Return the prefix, with underscores before it as long as a tensor's own name begins so."""
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


def _size_bytes(shape: Shape) -> int:
    return _ITEM_BYTES * math.prod(shape)


def encode_header(layout: Layout, metadata: Mapping[str, str], *, size_bytes: int = 0) -> bytes:
    """Return the length and the header, padded so that the data begin at a multiple of 64 bytes; no checksum yet.

    Args:
        size_bytes: how long it is to be in all, at least.

    Raises:
        ConfigError: it is longer than readers of the format take.
    """
    vectors = [[vector.kind, vector.prefix] for vector in layout.vectors]
    header: dict[str, Any] = {
        "__metadata__": {
            "distnet_checkpoint": str(VERSION),
            "checksum": f"crc32 {'0' * DIGITS}",
            "vectors": json.dumps(vectors),
            "saved": _saved_name(layout.tensors) if layout.saved_bytes else "",
            **metadata,
        }
    }
    for vector, offsets in zip(layout.vectors, layout.offsets(), strict=True):
        for (name, shape), at in zip(layout.tensors, offsets, strict=True):
            place = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + _size_bytes(shape)]}
            header[vector.prefix + name] = place
    if layout.saved_bytes:
        ends = [layout.vectors_bytes, layout.data_bytes]
        header[_saved_name(layout.tensors)] = {"dtype": "U8", "shape": [layout.saved_bytes], "data_offsets": ends}
    text = json.dumps(header, separators=(",", ":")).encode()
    assert text.startswith(START)
    length = max(len(text), size_bytes - LENGTH_BYTES)
    length += -(LENGTH_BYTES + length) % ALIGN_BYTES
    if length > MOST_HEADER_BYTES:
        raise ConfigError(
            f"the header of a checkpoint would have {length:,} bytes, and readers of safetensors take at most "
            f"{MOST_HEADER_BYTES:,}: use fewer tensors, or shorter names"
        )
    return length.to_bytes(LENGTH_BYTES, "little") + text.ljust(length)


def check_start(path: object, start: bytes) -> None:
    """Check that a header begins as those of this version do.

    Args:
        path: the file's path, for messages.
        start: the header's first bytes.

    Raises:
        CheckpointError: it begins otherwise, or as those of a newer format do.
    """
    if start.startswith(START):
        return
    key = _VERSION_KEY.encode()
    if start.startswith(key):
        version = start[len(key) :].partition(b'"')[0]
        if version.isdigit() and len(version) < 10 and int(version) > VERSION:
            raise CheckpointError(
                f"{path} is a checkpoint of format {int(version)}, and this DistNet reads up to {VERSION}: install a "
                "newer one"
            )
    raise CheckpointError(f"{path} is no checkpoint of DistNet, or its first bytes are damaged")


def decode_header(path: object, header: bytes, data_bytes: int) -> tuple[Layout, dict[str, str]]:
    """Return the layout and the metadata of a header.

    Args:
        path: the file's path, for messages.
        header: without its length.
        data_bytes: how many bytes of data come after it.

    Returns:
        Both.

    Raises:
        CheckpointError: it is not one that :func:`encode_header` makes, or does not fit the data.
    """
    try:
        entries = json.loads(header, object_pairs_hook=_no_name_twice)
        metadata = entries.pop("__metadata__")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are no texts")
        vectors = _decode_vectors(json.loads(metadata["vectors"]))
        saved = entries.pop(metadata["saved"]) if metadata["saved"] else None
        layout = _decode_layout(vectors, entries)
        if saved is not None:
            layout = dataclasses.replace(layout, saved_bytes=data_bytes - layout.vectors_bytes)
            ends = [layout.vectors_bytes, data_bytes]
            if saved != {"dtype": "U8", "shape": [layout.saved_bytes], "data_offsets": ends}:
                raise ValueError(f"what workers saved is {str(saved)[:100]}")
        if layout.data_bytes != data_bytes:
            raise ValueError(f"{data_bytes:,} bytes of data, where its tensors have {layout.data_bytes:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that no checkpoint has: {error}") from error
    return layout, metadata


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _decode_vectors(vectors: Any) -> tuple[Vector, ...]:
    if not isinstance(vectors, list) or not 1 <= len(vectors) <= 16:
        raise ValueError("no list of vectors")
    for vector in vectors:
        if not isinstance(vector, list) or len(vector) != 2 or not all(isinstance(text, str) for text in vector):
            raise ValueError(f"the vector {vector!r}")
    if vectors[0] != [_PARAMETERS, ""] or any(kind == _PARAMETERS for kind, _ in vectors[1:]):
        raise ValueError("parameters that are not the first vector")
    if any(kind == _EMA for kind, _ in vectors[2:]):
        raise ValueError("an EMA that is not the second vector")
    return tuple(Vector(kind, prefix) for kind, prefix in vectors)


def _decode_layout(vectors: tuple[Vector, ...], entries: Mapping[str, Any]) -> Layout:
    count, rest = divmod(len(entries), len(vectors))
    if rest or not count:
        raise ValueError(f"{len(entries)} tensors for {len(vectors)} vectors")
    found = [(name, _decode_shape(name, entry)) for name, entry in entries.items()]
    layout = Layout(tensors=tuple(found[:count]), vectors=vectors)
    expected = [
        (vector.prefix + name, shape, at)
        for vector, offsets in zip(vectors, layout.offsets(), strict=True)
        for (name, shape), at in zip(layout.tensors, offsets, strict=True)
    ]
    for (name, shape), (expected_name, expected_shape, at) in zip(found, expected, strict=True):
        if (name, shape) != (expected_name, expected_shape):
            raise ValueError(f"{name!r} of shape {shape} in the place of {expected_name!r} of shape {expected_shape}")
        if entries[name]["data_offsets"] != [at, at + _size_bytes(shape)]:
            raise ValueError(f"{name!r} at {entries[name]['data_offsets']} instead of {at}")
    return layout


def _decode_shape(name: str, entry: Any) -> Shape:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
        raise ValueError(f"{name!r} is {str(entry)[:100]}")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has no shape")
    if not all(type(extent) is int and 0 <= extent <= MOST_FLOATS for extent in shape):
        raise ValueError(f"{name!r} has an extent that cannot be")
    return tuple(shape)
