"""A checkpoint's file on disk: written piece by piece as the state comes, read whole, with a checksum over all of it.

Invariants
- Nobody is given a byte of a file before the checksum over the whole of it was right, and what was checked is what is
  used: it is read once, into memory.
- A file that is being written has its disk space before a page of its mapping is touched. So a full disk is an error of
  a call, and not a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import mmap
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distnet._private.arrays import Array
from distnet.checkpoint import layout as form
from distnet.checkpoint.layout import Layout, encode_header
from distnet.errors import CheckpointError

__all__ = ["read_file", "reserve_file", "write_file"]

_PIECE_BYTES = 4 << 20
_MOST_SAVED_BYTES = 10**12  # for the digits of this number there is room in the header
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def reserve_file(path: Path, size_bytes: int) -> None:
    """Make a file of zeros that has its disk space; :func:`write_file` can write over it.

    It returns at once where the file system can be asked for space, and takes as long as writing where it cannot.

    Args:
        path: the file's path.
        size_bytes: how large it will be.

    Raises:
        OSError: there is no room, or another reason why it cannot be made.
    """
    descriptor = _open(path, os.O_TRUNC)
    try:
        _allocate(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def write_file(
    path: Path,
    layout: Layout,
    read: Callable[[list[list[Array]]], bytes],
    metadata: Mapping[str, str],
) -> None:
    """Write a file that nobody else knows of yet, and return when it is on the disk.

    The arrays of the state are the file's own pages: no copy of it is made in memory, and the system writes them out
    while they are filled.

    Args:
        path: a file that is there is written over, and its disk space used.
        layout: without what workers saved, which is known only when all has been read.
        read: fills one list of arrays for each vector, and returns what workers saved.
        metadata: texts.

    Raises:
        OSError: there is no room, or another reason why it cannot be written.
        ConfigError: the header is too long.
    """
    header_bytes = len(encode_header(dataclasses.replace(layout, saved_bytes=_MOST_SAVED_BYTES), metadata))
    size_bytes = header_bytes + layout.data_bytes
    descriptor = _open(path)
    try:
        os.ftruncate(descriptor, min(os.fstat(descriptor).st_size, size_bytes))
        _allocate(descriptor, size_bytes)
        memory = mmap.mmap(descriptor, size_bytes)
        try:
            saved = read(_arrays(memory, header_bytes, layout))
            layout = dataclasses.replace(layout, saved_bytes=len(saved))
            memory[:header_bytes] = encode_header(layout, metadata, size_bytes=header_bytes)
            digits = f"{zlib.crc32(saved, _checksum_of(memory)):0{form.DIGITS}x}".encode()
            memory[form.DIGITS_AT : form.DIGITS_AT + form.DIGITS] = digits
            memory.flush()
        finally:
            with contextlib.suppress(BufferError):  # an error holds arrays; the mapping ends with them
                memory.close()
        _write_at(descriptor, size_bytes, saved)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Take the disk space beyond what the file has; where the file system cannot be asked for it, by writing zeros."""
    begin = os.fstat(descriptor).st_size
    if begin == size_bytes:
        return
    try:
        os.posix_fallocate(descriptor, begin, size_bytes - begin)
        return
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
    zeros = bytes(_PIECE_BYTES)
    for at in range(begin, size_bytes, _PIECE_BYTES):
        _write_at(descriptor, at, zeros[: size_bytes - at])


def _write_at(descriptor: int, at: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, at)
        at, left = at + count, left[count:]


def _arrays(memory: mmap.mmap | NDArray[np.uint8], data_at: int, layout: Layout) -> list[list[Array]]:
    """Return the arrays of each vector, which are views of the memory."""
    vectors = []
    for offsets in layout.offsets():
        arrays = []
        for (_, shape), offset in zip(layout.tensors, offsets, strict=True):
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(memory, np.float32, count, data_at + offset).reshape(shape))
        vectors.append(arrays)
    return vectors


def _checksum_of(memory: mmap.mmap) -> int:
    """Return the CRC-32 of a file whose digits are zeros."""
    checksum = 0
    with memoryview(memory) as view:
        for at in range(0, len(view), _PIECE_BYTES):
            with view[at : at + _PIECE_BYTES] as piece:
                checksum = zlib.crc32(piece, checksum)
    return checksum


def read_file(path: Path) -> tuple[Layout, dict[str, str], list[list[Array]], bytes]:
    """Return what a checkpoint's file holds.

    Args:
        path: the file's path.

    Returns:
        Layout, metadata, for each vector its arrays (read-only float32), and what workers saved.

    Raises:
        CheckpointError: it is no checkpoint's file, of a newer format, cut short, or damaged; or cannot be read.
    """
    try:
        # Without O_NONBLOCK a pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {_reason(error)}") from error
    try:
        content, header_bytes = _read_all(path, descriptor)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {_reason(error)}") from error
    finally:
        os.close(descriptor)
    header = content[form.LENGTH_BYTES : header_bytes].tobytes()
    layout, metadata = form.decode_header(path, header, len(content) - header_bytes)
    content.flags.writeable = False
    try:
        saved = content[len(content) - layout.saved_bytes :].tobytes()
        return layout, metadata, _arrays(content, header_bytes, layout), saved
    except ValueError as error:
        raise CheckpointError(f"{path} holds a tensor of a shape that NumPy cannot make: {error}") from error


def _read_all(path: Path, descriptor: int) -> tuple[NDArray[np.uint8], int]:
    """Return the whole file, whose checksum is right, and where its data begin."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is no file")
    least = form.DIGITS_AT + form.DIGITS
    start = os.pread(descriptor, least, 0)
    if len(start) < least:
        raise CheckpointError(f"{path} has {len(start)} bytes; no checkpoint is so short")
    length = int.from_bytes(start[: form.LENGTH_BYTES], "little")
    header_bytes = form.LENGTH_BYTES + length
    form.check_start(path, start[form.LENGTH_BYTES :])
    if not least <= header_bytes <= form.LENGTH_BYTES + form.MOST_HEADER_BYTES:
        raise CheckpointError(f"{path} is damaged: its header would have {length:,} bytes")
    if header_bytes > status.st_size:
        raise CheckpointError(f"{path} is cut short: it ends within its header")
    content = np.empty(status.st_size, np.uint8)
    checksum = 0
    for at in range(0, len(content), _PIECE_BYTES):
        piece = content[at : at + _PIECE_BYTES]
        _read_exactly(path, descriptor, piece)
        if at == 0:
            piece = piece.copy()
            piece[form.DIGITS_AT : form.DIGITS_AT + form.DIGITS] = ord("0")
        checksum = zlib.crc32(piece.data, checksum)
    if start[form.DIGITS_AT :] != f"{checksum:0{form.DIGITS}x}".encode():
        raise CheckpointError(f"{path} is damaged or cut short: its checksum is not that of its bytes")
    return content, header_bytes


def _read_exactly(path: Path, descriptor: int, to: NDArray[np.uint8]) -> None:
    left: Any = memoryview(to.data)
    while left:
        count = os.readv(descriptor, [left])
        if not count:
            raise CheckpointError(f"{path} was cut short while it was read")
        left = left[count:]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
