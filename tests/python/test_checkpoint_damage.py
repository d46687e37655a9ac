"""A checkpoint's file that is damaged, or made to harm, is refused."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_case import a_snapshot

import distnet
from distnet.checkpoint import CheckpointFolder, layout, load

FLIPS = 200


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).write(a_snapshot({"w": np.ones(200, np.float32)}, saved={0: b"place"}))
    content, random = path.read_bytes(), np.random.default_rng(5)
    load(path)
    places = [*range(8 * 50, 8 * 80), *random.choice(8 * len(content), FLIPS, replace=False)]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(distnet.CheckpointError, match="checkpoint-000000000003"):
            load(path)
    assert len(places) > FLIPS


@pytest.mark.parametrize("end", [0, 7, 8, 60, 88, 700, -1, None])
def test_a_file_that_is_cut_short_or_longer_is_refused(tmp_path: Path, end: int | None) -> None:
    path = CheckpointFolder(tmp_path).write(a_snapshot())
    content = path.read_bytes()
    path.write_bytes(content[:end] if end is not None else content + b"\0")
    with pytest.raises(distnet.CheckpointError, match=r"short|damaged"):
        load(path)


def write_with_right_checksum(path: Path, header: bytes, data: bytes) -> None:
    """Write a file that only its contents give away."""
    content = bytearray(len(header).to_bytes(8, "little") + header + data)
    digits = slice(layout.DIGITS_AT, layout.DIGITS_AT + layout.DIGITS)
    content[digits] = b"0" * layout.DIGITS
    content[digits] = f"{zlib.crc32(content):08x}".encode()
    path.write_bytes(content)


METADATA: dict[str, Any] = {
    "distnet_checkpoint": "1", "checksum": "crc32 00000000", "vectors": '[["parameters",""]]', "time": "",
    "named": "true", "versions": "[1]", "round": "null", "learning_rate": "null", "optimizer": "{}",
    "arguments": "{}", "saved": "",
}  # fmt: skip
TENSOR: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SAVED = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}


def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    write_with_right_checksum(tmp_path / "file", hostile_header({}, {"w": TENSOR}), bytes(8))
    assert load(tmp_path / "file").versions == (1,)


def hostile_header(metadata: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    return json.dumps({"__metadata__": METADATA | metadata, **tensors}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({}, {}),
        ({}, {"w": {**TENSOR, "dtype": "F64"}}),
        ({}, {"w": {**TENSOR, "shape": [3]}}),
        ({}, {"w": {**TENSOR, "shape": [-2]}}),
        ({}, {"w": {**TENSOR, "shape": [2**70, 0]}}),
        ({}, {"w": {**TENSOR, "shape": [2, *[1] * 40]}}),
        ({}, {"w": {**TENSOR, "data_offsets": [4, 12]}}),
        ({}, {"w": {**TENSOR, "more": 1}}),
        ({}, {"w": 5}),
        ({}, {"w": TENSOR, "v": TENSOR}),
        ({}, {"w": {**TENSOR, "shape": [2**40, 2**40, 2**40], "data_offsets": [0, 2**122]}}),
        ({}, {"w": {**TENSOR, "shape": [0, 2**40, 2**40, 2**40], "data_offsets": [0, 0]}, "v": TENSOR}),
        ({"vectors": '[["ema",""]]'}, {"w": TENSOR}),
        ({"vectors": '[["parameters",""],["sum","s/"]]'}, {"w": TENSOR}),
        ({"vectors": "[" * 50_000}, {"w": TENSOR}),
        ({"vectors": "1" * 5000}, {"w": TENSOR}),
        ({"named": "1"}, {"w": TENSOR}),
        ({"named": "false"}, {"w": TENSOR}),
        ({"versions": "[]"}, {"w": TENSOR}),
        ({"versions": "[true, -1]"}, {"w": TENSOR}),
        ({"versions": '{"a": 1}'}, {"w": TENSOR}),
        ({"round": '"x"'}, {"w": TENSOR}),
        ({"learning_rate": "NaN"}, {"w": TENSOR}),
        ({"saved": "x"}, {"w": TENSOR}),
        ({"saved": "w"}, {"w": TENSOR}),
        ({"saved": "x"}, {"w": {**TENSOR, "shape": [0], "data_offsets": [0, 0]}, "x": {**SAVED, "shape": [7]}}),
        ({"saved": "x"}, {"w": {**TENSOR, "shape": [0], "data_offsets": [0, 0]}, "x": SAVED}),
        ({"optimizer": "[]"}, {"w": TENSOR}),
        ({"time": 5}, {"w": TENSOR}),
    ],
)
def test_a_hostile_file_with_a_right_checksum_is_refused(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any]
) -> None:
    path = tmp_path / "hostile.safetensors"
    write_with_right_checksum(path, hostile_header(metadata, tensors), bytes(8))
    with pytest.raises(distnet.CheckpointError, match=r"hostile\.safetensors"):
        load(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"workers": "x"}', "number of workers is 'x'"),
        ('{"semantics": {"joins": "some"}}', "Semantics.joins"),
        ('{"semantics": {"jump": 1}}', "not what this version knows"),
        ('{"groups": [1]}', "not what this version knows"),
        ('{"jump": 1}', "expected some of semantics"),
        ('{"ema_decay": []}', r"ema_decay is \[\]"),
    ],
)
def test_arguments_in_a_file_that_cannot_be_are_refused_where_they_count(
    tmp_path: Path, arguments: str, expected: str
) -> None:
    metadata = {"arguments": arguments, "optimizer": json.dumps(distnet.SGD(0.1).to_spec())}
    write_with_right_checksum(tmp_path / "file", hostile_header(metadata, {"w": TENSOR}), bytes(8))
    assert load(tmp_path / "file").version == 1
    with pytest.raises(distnet.ConfigError, match=expected):
        distnet.ParameterServer(restore=tmp_path / "file")


def test_what_is_no_checkpoint_is_told_from_one_of_a_newer_format(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).write(a_snapshot())
    path.write_bytes(path.read_bytes().replace(b'"distnet_checkpoint":"1"', b'"distnet_checkpoint":"2"'))
    with pytest.raises(distnet.CheckpointError, match="format 2, and this DistNet reads up to 1"):
        load(path)
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(distnet.CheckpointError, match="no checkpoint of DistNet"):
        load(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(distnet.CheckpointError, match="is no file"):
        load(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    with pytest.raises(distnet.CheckpointError, match="holds no checkpoint"):
        load(tmp_path / "empty")
