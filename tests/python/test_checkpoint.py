"""A checkpoint's file holds a server's whole state; damage is seen, and a server goes on from it to the bit."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import push_rounds, random_model
from test_bad_numbers import FLOATS, careless_worker, ones_but
from test_restore import OPTIMIZERS, assert_same
from worker_processes import SEMANTICS_AND_SHARDS, changed, serve, wait_until

import distnet
from distnet.checkpoint import CheckpointFolder, Every, layout, load, load_into_keras, parse_every, torch_state_dict

KILLED_WRITER = Path(__file__).parent / "workers" / "killed_writer.py"
FLIPS = 200


def a_snapshot(parameters: Any = None, **changes: Any) -> distnet.Snapshot:
    parameters = random_model(0) if parameters is None else parameters
    fields: dict[str, Any] = {
        "parameters": parameters,
        "optimizer_state": (parameters,),
        "ema": None,
        "versions": (3,),
        "round": None,
        "optimizer": distnet.Momentum(0.1).to_spec(),
    }
    return distnet.Snapshot(**fields | changes)


def push(server: distnet.ParameterServer, count: int, transport: str = "auto") -> None:
    """Push as often, by one worker."""
    with distnet.connect(server.address, rank=0, transport=transport) as client:
        for number in range(count):
            client.push_pull(random_model(1 + number))


# ---- round trips ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "semantics", "shards"),
    [*(("adam", *pair) for pair in SEMANTICS_AND_SHARDS), *((name, "async-lockfree", 2) for name in OPTIMIZERS)],
)
def test_all_of_a_state_comes_back_from_its_file(tmp_path: Path, name: str, semantics: str, shards: int) -> None:
    options: dict[str, Any] = {"optimizer": OPTIMIZERS[name], "ema_decay": 0.9, "workers": 1}
    with serve(random_model(0), semantics, "shm", shards, **options) as server:
        push(server, 4)
        path = server.checkpoint(tmp_path)
        taken = server.snapshot()
    checkpoint = load(path)
    assert_same(checkpoint.snapshot(), taken)
    assert checkpoint.versions == taken.versions
    assert checkpoint.metadata["optimizer"] == OPTIMIZERS[name].to_spec()
    with distnet.ParameterServer(restore=tmp_path) as server:
        assert (server.semantics, server.servers) == (distnet.SEMANTICS[semantics], shards)
        assert server.restored is not None
        assert (server.restored.path, server.restored.differences) == (path, ())
        assert_same(server.snapshot(), taken)


@pytest.mark.parametrize(("shards", "later_shards"), [(1, 3), (2, 1)])
def test_rounds_go_on_to_the_bit_on_other_shards(tmp_path: Path, shards: int, later_shards: int) -> None:
    options: dict[str, Any] = {"optimizer": OPTIMIZERS["momentum"], "ema_decay": 0.9, "workers": 2}
    with serve(random_model(0), "sync", "shm", shards, **options) as server:
        push_rounds(server, 0, 4)
        server.checkpoint(tmp_path)
        push_rounds(server, 4, 8)
        end = server.snapshot()
    with distnet.ParameterServer(restore=tmp_path, servers=later_shards) as server:
        push_rounds(server, 4, 8)
        assert_same(server.snapshot(), end)
        assert server.restored is not None
        assert [str(d) for d in server.restored.differences] == [f"servers is {later_shards}, and was {shards}"]


def test_processes_go_on_from_a_file_also_when_they_are_started_twice(tmp_path: Path) -> None:
    taken = a_snapshot()
    path = CheckpointFolder(tmp_path).write(taken)
    server = distnet.ParameterServer(restore=path, semantics="async-apply", servers=2, processes=True)
    for _ in range(2):
        with server:
            assert_same(server.snapshot(), taken)


def test_others_can_read_every_tensor(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    taken = a_snapshot(ema=random_model(2), optimizer_state=(random_model(3),), saved={0: b"x" * 1000})
    path = CheckpointFolder(tmp_path).write(taken)
    arrays = safetensors.load_file(path)
    expected = {
        **random_model(0),
        **{f"ema/{name}": array for name, array in random_model(2).items()},
        **{f"optimizer/momentum_buffer/{name}": array for name, array in random_model(3).items()},
    }
    saved = json.loads(arrays.pop("saved").tobytes())
    assert base64.b64decode(saved["0"]) == b"x" * 1000
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        assert (arrays[name].shape, arrays[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(arrays[name], array)
    assert arrays["scalar"].shape == ()
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0


@pytest.mark.parametrize(
    "parameters",
    [
        [np.arange(6, dtype=np.float32).reshape(2, 3), np.float32(7).reshape(())],
        {name: np.full(3, index, np.float32) for index, name in enumerate(["x", "ema/x", "_ema/x", "optimizer/sum/x"])},
        {"saved": np.ones(3, np.float32), "_saved": np.zeros(3, np.float32)},
        {'ä/ "\\\n': np.zeros(0, np.float32), "optimizer/momentum_buffer/y": np.ones((1, 0, 2), np.float32)},
    ],
    ids=["a list", "names of our own kind", "saved", "odd names"],
)
def test_tensors_of_any_name_come_back(tmp_path: Path, parameters: Any) -> None:
    other = [a + 1 for a in parameters] if isinstance(parameters, list) else {n: a + 1 for n, a in parameters.items()}
    taken = a_snapshot(parameters, ema=other, saved={1: b"place"})
    again = load(CheckpointFolder(tmp_path).write(taken)).snapshot()
    assert_same(again, taken)
    assert again.saved == {1: b"place"}


def test_what_workers_saved_and_a_learning_rate_that_was_set_come_back(tmp_path: Path) -> None:
    saved = {0: os.urandom(65_536), 7: b"", 1023: b"\0"}
    read = load(CheckpointFolder(tmp_path).write(a_snapshot(learning_rate=0.25, saved=saved, versions=(5, 4), round=4)))
    assert (read.saved, read.learning_rate, read.versions, read.round, read.version) == (saved, 0.25, (5, 4), 4, 4)
    with pytest.raises(distnet.ConfigError, match=r"saved\[0\] is 65537 bytes"):
        a_snapshot(saved={0: b"x" * 65_537})


def test_a_name_that_the_format_has_for_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(distnet.ConfigError, match="'__metadata__'"):
        CheckpointFolder(tmp_path).write(a_snapshot({"__metadata__": np.zeros(1, np.float32)}))


# ---- who decides ---------------------------------------------------------------------------------------------------
def test_arguments_that_are_given_win_and_the_others_are_the_files(tmp_path: Path) -> None:
    sync = changed("sync", on_loss="wait", round_timeout=77.0)
    kept: dict[str, Any] = {
        "semantics": sync,
        "optimizer": distnet.Adam(distnet.CosineDecay(0.1, 100), betas=(0.8, 0.9)),
        "workers": 3,
        "servers": 2,
        "ema_decay": 0.9,
        "groups": {"b*": distnet.Group(0.5, 0.0), "*": distnet.Group()},
        "push_format": "bfloat16",
        "reconnect_timeout": 3.0,
    }
    with distnet.ParameterServer(random_model(0), **kept) as server:
        server.checkpoint(tmp_path)
    assert load(tmp_path).arguments() == kept | {"pull_format": "float32"}
    with distnet.ParameterServer(restore=tmp_path, workers=1, ema_decay=0, optimizer=distnet.Adam(0.5)) as server:
        assert server.restored is not None
        assert [(d.name, d.given) for d in server.restored.differences] == [
            ("optimizer", distnet.Adam(0.5)),
            ("workers", 1),
            ("ema_decay", 0),
        ]
        assert (server.semantics, server.servers, server.workers) == (sync, 2, 1)
        assert server.snapshot().ema is None


def test_a_learning_rate_that_was_set_counts_on_unless_another_is_given(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).write(a_snapshot(learning_rate=0.25))
    as_before = distnet.ParameterServer(restore=tmp_path, optimizer=distnet.Momentum(0.1, momentum=0.5))
    given = distnet.ParameterServer(restore=tmp_path, optimizer=distnet.Momentum(0.3))
    assert as_before.restored is not None
    assert given.restored is not None
    assert [d.name for d in as_before.restored.differences] == ["optimizer"]
    assert str(given.restored.differences[1]) == "learning_rate is 0.3, and was 0.25"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"optimizer": distnet.Adam(0.1)}, "made with the optimizer 'momentum', and the server has 'adam'"),
        (
            {"parameters": [np.zeros(3, np.float32)]},
            "parameters= has 1 tensors, .*checkpoint-000000000003.safetensors 4",
        ),
        ({"restore": "/nowhere"}, "cannot read the checkpoint /nowhere: No such file"),
        ({"checkpoint_every": "5min"}, "checkpoint_every is '5min', without checkpoint="),
        (
            {"checkpoint": "x", "checkpoint_every": "5"},
            "checkpoint_every is '5'; expected .*'500updates'",
        ),
        ({"checkpoint": "x", "keep_checkpoints": 0}, "to keep is 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, arguments: dict[str, Any], expected: str) -> None:
    CheckpointFolder(tmp_path).write(a_snapshot())
    with pytest.raises(distnet.ConfigError, match=expected):
        distnet.ParameterServer(**{"restore": tmp_path} | arguments)


def test_what_clients_bring_is_only_checked_against_a_file(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).write(a_snapshot())
    with distnet.ParameterServer(restore=tmp_path) as server:
        with distnet.connect(server.address, rank=0, parameters=random_model(8)) as client:
            np.testing.assert_array_equal(client.pull()["w"], random_model(0)["w"])  # type: ignore[call-overload]
        with pytest.raises(distnet.ManifestMismatch):
            distnet.connect(server.address, rank=0, parameters=[np.zeros(3, np.float32)])


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("500updates", Every(updates=500)),
        (" 1 update", Every(updates=1)),
        ("10min", Every(seconds=600.0)),
        ("1.5h", Every(seconds=5400.0)),
        ("30 s", Every(seconds=30.0)),
    ],
)
def test_how_often_is_read_and_said_the_same(text: str, every: Every) -> None:
    assert parse_every(text) == every == parse_every(str(every))


@pytest.mark.parametrize("text", ["", "10", "min", "-5min", "0updates", "1.5updates", "5 parsecs", "1e3s", None])
def test_what_says_no_distance_is_refused(text: Any) -> None:
    with pytest.raises(distnet.ConfigError, match="checkpoint_every is"):
        parse_every(text)


# ---- damage and hostile files --------------------------------------------------------------------------------------
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


# ---- the folder ----------------------------------------------------------------------------------------------------
def test_a_writer_that_is_killed_at_any_call_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, KILLED_WRITER, tmp_path], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    deaths = json.loads(run.stdout)
    assert all(loaded in (before, new) for _, before, new, loaded in deaths)
    assert {before == loaded for _, before, _, loaded in deaths} == {True, False}
    assert {
        "posix_fallocate",
        "flush of the mapping",
        "fsync",
        "replace",
        "symlink",
        "unlink",
    } <= {where for where, *_ in deaths}
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert [name for name in names if name.endswith(".part")] == []
    assert len([name for name in names if name.startswith("checkpoint-")]) == 2


def names_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != ".lock")


def test_the_last_few_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "new" / "folder", keep=2)
    assert folder.latest() is None
    paths = [folder.write(a_snapshot(versions=(version,))) for version in (9, 10, 11, 100)]
    assert names_in(folder.path) == [paths[2].name, paths[3].name, "latest"]
    assert folder.latest() == paths[3] == folder.files()[-1]
    assert os.readlink(folder.path / "latest") == paths[3].name
    # A run that went on from an earlier one leaves those alone that are ahead of it.
    earlier = [folder.write(a_snapshot(versions=(version,))) for version in (5, 6, 7)]
    assert names_in(folder.path) == [*(p.name for p in (*earlier[1:], *paths[2:])), "latest"]
    assert load(folder.path).versions == (7,)
    (folder.path / "latest").unlink()
    assert folder.latest() == paths[3]


def test_one_server_at_a_time_has_a_folder(tmp_path: Path) -> None:
    with distnet.ParameterServer(random_model(0), checkpoint=tmp_path) as server:
        second = distnet.ParameterServer(random_model(0), checkpoint=tmp_path)
        with pytest.raises(distnet.CheckpointError, match="another server of this process writes checkpoints to"):
            second.start()
        with pytest.raises(distnet.CheckpointError, match="another server"):
            second.checkpoint(tmp_path) if second.running else CheckpointFolder(tmp_path).claim()
        claim = f"from distnet.checkpoint import *; CheckpointFolder({str(tmp_path)!r}).claim()"
        other = subprocess.run([sys.executable, "-c", claim], capture_output=True, text=True, timeout=60, check=False)
        assert f"process {os.getpid()} on " in other.stderr
        assert server.checkpoint(tmp_path) == server.checkpoint()
    with second:
        pass


def test_a_folder_stays_taken_while_somebody_reads_all_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with distnet.ParameterServer(random_model(0), checkpoint=folder):
        shutil.copytree(folder, tmp_path / "copy")  # opens and closes the file with the lock
        claim = f"from distnet.checkpoint import *; CheckpointFolder({str(folder)!r}).claim()"
        other = subprocess.run([sys.executable, "-c", claim], capture_output=True, text=True, timeout=60, check=False)
        assert f"process {os.getpid()} on " in other.stderr
    with distnet.ParameterServer(random_model(0), checkpoint=folder):
        pass


def test_a_forked_child_does_not_keep_the_folder_of_its_parent(tmp_path: Path) -> None:
    text = f"""
import os, signal, sys
from distnet.checkpoint import CheckpointFolder
folder = CheckpointFolder({str(tmp_path)!r})
folder.claim()
if os.fork() == 0:
    folder.release()  # does nothing here
    print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "child\n"
            with pytest.raises(distnet.CheckpointError, match=f"process {parent.pid} on .* writes checkpoints to"):
                CheckpointFolder(tmp_path).claim()
        finally:
            parent.kill()
        parent.wait(60)
        folder = CheckpointFolder(tmp_path)
        folder.claim()  # the child is alive
        folder.release()


def test_the_entries_of_new_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = set()

    def fsync(descriptor: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    folder = CheckpointFolder(tmp_path / "one" / "two" / "three")
    folder.claim()
    folder.release()
    assert flushed >= {str(tmp_path), str(tmp_path / "one"), str(tmp_path / "one" / "two")}
    flushed.clear()
    folder.claim()  # it is there already
    folder.release()
    assert flushed == set()


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "a file" else tmp_path / "file" / "folder"
    server = distnet.ParameterServer(random_model(0), checkpoint=folder)
    with pytest.raises(distnet.CheckpointError, match=r"cannot write a checkpoint to .*file"):
        server.start()
    assert not server.running


def test_parameters_are_compared_by_name_with_what_is_restored(tmp_path: Path) -> None:
    first = {"w": np.full((2, 3), 5, np.float32), "b": np.ones(3, np.float32)}
    CheckpointFolder(tmp_path).write(a_snapshot(first))
    with distnet.ParameterServer({"b": first["b"], "w": first["w"]}, restore=tmp_path) as server:
        arrays = server.parameters()
        assert isinstance(arrays, dict)
        np.testing.assert_array_equal(arrays["w"], first["w"])
    with pytest.raises(
        distnet.ConfigError, match=r"parameters= has a tensor 'b' of shape \(4,\) where .* 'b' of shape"
    ):
        distnet.ParameterServer({"b": np.ones(4, np.float32), "w": first["w"]}, restore=tmp_path)


# ---- while a server trains -----------------------------------------------------------------------------------------
@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger files for a while: as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_checkpoints_are_written_while_workers_push_and_at_the_end(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": distnet.SGD(0.1), "checkpoint": tmp_path, "checkpoint_every": "5updates"}
    with distnet.ParameterServer(random_model(0), semantics="async-apply", **options) as server:
        assert names_in(tmp_path) == []
        push(server, 5)
        wait_until(lambda: (tmp_path / "latest").exists(), "the first checkpoint is written")
        assert load(tmp_path).versions == (5,)
        push(server, 2)
    assert load(tmp_path).versions == (7,)
    assert "distnet-checkpoints" not in {thread.name for thread in threading.enumerate()}
    before = os.stat(tmp_path / "latest").st_mtime_ns
    with distnet.ParameterServer(restore=tmp_path, checkpoint=tmp_path):
        pass  # nothing has changed
    assert os.stat(tmp_path / "latest").st_mtime_ns == before


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("learning_rate", [0.5, 0.1])
def test_a_learning_rate_that_was_set_after_the_newest_is_in_the_last(
    tmp_path: Path, learning_rate: float, processes: bool
) -> None:
    """Also the one that counts at that moment: it holds the schedule where it is."""
    options: dict[str, Any] = {"optimizer": distnet.SGD(distnet.CosineDecay(0.1, 100)), "processes": processes}
    with distnet.ParameterServer(random_model(0), checkpoint=tmp_path, **options) as server:
        first = server.checkpoint()
        server.set_learning_rate(learning_rate)
    assert load(tmp_path).path == first
    assert load(tmp_path).snapshot().learning_rate == learning_rate


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-lockfree"])
def test_nothing_is_written_twice_where_a_push_was_refused(tmp_path: Path, semantics: str) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every": None, "address": "tcp://127.0.0.1:0"}
    with distnet.ParameterServer([np.zeros(FLOATS, np.float32)], semantics=semantics, **options) as server:
        with careless_worker(server, "tcp") as (push_unchecked, reply):
            push_unchecked(ones_but(np.nan))
            reply()
            wait_until(lambda: server.stats().refused == 1, "the push is refused")
        written = os.stat(server.checkpoint()).st_ino
    assert os.stat(load(tmp_path).path).st_ino == written
    with distnet.ParameterServer(restore=tmp_path, checkpoint=tmp_path):
        pass
    assert os.stat(load(tmp_path).path).st_ino == written


def test_checkpoints_from_many_threads_and_their_readers_do_not_meet(tmp_path: Path) -> None:
    """Versions that are whole, though each writer removes what the reader may be about to read."""
    options: dict[str, Any] = {"optimizer": distnet.SGD(1.0), "checkpoint": tmp_path, "keep_checkpoints": 1}
    with distnet.ParameterServer([np.zeros(50_000, np.float32)], semantics="async-apply", **options) as server:
        stop, errors = threading.Event(), []

        def repeat(call: Any) -> None:
            try:
                while not stop.is_set():
                    call()
            except BaseException as error:
                errors.append(error)

        def read() -> None:
            checkpoint = load(tmp_path)
            assert (checkpoint.parameters[0] == -checkpoint.version).all()  # type: ignore[index]

        server.checkpoint()
        calls = [server.checkpoint, lambda: server.checkpoint(tmp_path), read, read]
        threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
        with distnet.connect(server.address, rank=0) as client:
            for thread in threads:
                thread.start()
            while client.version < 200 and not errors:
                client.push([np.ones(50_000, np.float32)])
            stop.set()
            for thread in threads:
                thread.join()
    assert not errors
    assert load(tmp_path).version >= 200
    assert len(names_in(tmp_path)) == 2


def test_a_last_checkpoint_is_written_when_the_interpreter_ends_without_stop(tmp_path: Path) -> None:
    script = (
        "import distnet, numpy as np\n"
        f"server = distnet.ParameterServer([np.zeros(3, 'f4')], checkpoint={str(tmp_path)!r}, processes=True).start()\n"
        "distnet.connect(server.address, rank=0).push([np.ones(3, 'f4')])\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
    assert load(tmp_path).versions == (1,)


def test_what_is_pushed_after_the_last_checkpoint_is_in_none(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path, "address": "tcp://127.0.0.1:0"}
    with distnet.ParameterServer(random_model(0), semantics="async-apply", **options) as server:
        push(server, 2, transport="tcp")
        with largest_file(10_000), pytest.raises(distnet.CheckpointError, match="File too large"):
            server.write_last_checkpoint()
        server.write_last_checkpoint()
        push(server, 1, transport="tcp")
        assert server.stats().version == 3
    assert load(tmp_path).versions == (2,)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_last_checkpoint_is_written_when_an_error_ends_the_training(tmp_path: Path, error: Any) -> None:
    def train() -> None:
        with distnet.ParameterServer(random_model(0), checkpoint=tmp_path, checkpoint_every=None) as server:
            push(server, 3)
            raise error

    with pytest.raises(error):
        train()
    assert load(tmp_path).versions == (3,)


def test_a_folder_stays_taken_while_a_checkpoint_is_written_that_nobody_waits_for_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def write_slowly(*_: Any) -> None:
        writing.set()
        go_on.wait(60)
        raise OSError("too late")

    def write() -> None:
        with pytest.raises(distnet.DistNetError):
            server.checkpoint()

    def interrupt() -> None:
        wait_until(lambda: server._checkpoints is None, "the server is being stopped")
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(distnet.checkpoint.folder, "write_checkpoint", write_slowly)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it in its processes
    server = distnet.ParameterServer(random_model(0), checkpoint=tmp_path).start()
    push(server, 1)
    threads = [threading.Thread(target=write), threading.Thread(target=interrupt)]
    try:
        threads[0].start()
        assert writing.wait(60)
        threads[1].start()
        with pytest.raises(KeyboardInterrupt):
            server.stop()
        with pytest.raises(distnet.CheckpointError, match="another server of this process"):
            CheckpointFolder(tmp_path).claim()
    finally:
        signal.signal(signal.SIGINT, before)
        go_on.set()
        for thread in threads:
            thread.join(60)
    folder = CheckpointFolder(tmp_path)
    folder.claim()
    folder.release()


def test_a_full_disk_is_said_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "distnet")
    options: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every": "1updates", "address": "tcp://127.0.0.1:0"}
    server = distnet.ParameterServer(random_model(0), **options).start()
    with largest_file(10_000):
        push(server, 1, transport="tcp")  # the limit counts for shared memory, too
        wait_until(lambda: "training goes on without a new checkpoint" in caplog.text, "it is said")
        with pytest.raises(distnet.CheckpointError, match=f"cannot write a checkpoint to {tmp_path}: File too large"):
            server.checkpoint()
        assert names_in(tmp_path) == []
        push(server, 1, transport="tcp")
        caplog.clear()
        with pytest.raises(distnet.CheckpointError, match="the last checkpoint was not written, and there is none"):
            server.stop()
        assert "the last checkpoint was not written" in caplog.text
    assert not server.running
    with distnet.ParameterServer(random_model(0), checkpoint=tmp_path) as server:
        push(server, 1)
    assert load(tmp_path).versions == (1,)


def test_the_error_that_ends_a_training_is_not_hidden_by_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> None:
        server = distnet.ParameterServer(random_model(0), checkpoint=tmp_path, checkpoint_every=None)
        with contextlib.ExitStack() as full, server:
            push(server, 1)
            full.enter_context(largest_file(10_000))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert "the last checkpoint was not written" in caplog.text


def test_a_folder_with_checkpoints_of_another_run_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = CheckpointFolder(tmp_path).write(a_snapshot())
    with distnet.ParameterServer(random_model(0), checkpoint=tmp_path):
        assert f"holds checkpoints of an earlier run, up to {path.name}" in caplog.text
    caplog.clear()
    with distnet.ParameterServer(restore=path, checkpoint=tmp_path):
        assert not caplog.text


def test_the_state_is_not_held_in_memory_while_it_is_written(tmp_path: Path) -> None:
    """A snapshot takes it beside the buffer that each client maps and this one never touches; a checkpoint does not."""
    megabytes = 32
    model = [np.ones(megabytes << 18, np.float32)]
    with distnet.ParameterServer(model, processes=True, optimizer=distnet.SGD(0.1)) as server:
        server.checkpoint(tmp_path)  # what is allocated once
        limit = resource.getrlimit(resource.RLIMIT_DATA)
        used = 1024 * int(status_of_this_process()["VmData"].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, (used + 3 * (megabytes << 19), limit[1]))
        try:
            path = server.checkpoint(tmp_path)
            with pytest.raises(MemoryError):
                server.snapshot()
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, limit)
    (array,) = load(path).parameters
    assert (array == 1).all()


def status_of_this_process() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# ---- frameworks ----------------------------------------------------------------------------------------------------
class Weight:
    """What is asked of a Keras weight."""

    def __init__(self, path: str, shape: tuple[int, ...]) -> None:
        self.path, self.name, self.shape = path, path.rpartition("/")[2], shape
        self.value: Any = None

    def assign(self, value: Any) -> None:
        self.value = value


class Model:
    """What is asked of a Keras model; its last weight is not trained."""

    def __init__(self, *weights: Weight) -> None:
        self.weights = list(weights)
        self.trainable_variables = self.weights[:-1]


def a_model(**shapes: tuple[int, ...]) -> Model:
    sizes = {"kernel": (2, 3), "bias": (3,), "mean": (3,)} | shapes
    return Model(*(Weight(f"net/{name}", shape) for name, shape in sizes.items()))


KERNEL, BIAS = np.ones((2, 3), np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize(
    "parameters",
    [
        {"net/bias": BIAS, "net/kernel": KERNEL},
        {"kernel": KERNEL, "bias": BIAS},
        {"net/kernel": KERNEL, "net/bias": BIAS, "net/mean": BIAS},
        [KERNEL, BIAS],
        [KERNEL, BIAS, BIAS],
    ],
)
def test_parameters_go_into_a_keras_model(tmp_path: Path, parameters: Any) -> None:
    twice = [2 * a for a in parameters] if isinstance(parameters, list) else {n: 2 * a for n, a in parameters.items()}
    CheckpointFolder(tmp_path).write(a_snapshot(parameters, ema=twice))
    for ema, factor in ((False, 1), (True, 2)):
        model = a_model()
        load_into_keras(tmp_path, model, ema)
        np.testing.assert_array_equal(model.weights[0].value, factor * KERNEL)
        np.testing.assert_array_equal(model.weights[1].value, factor * BIAS)
        assert (model.weights[2].value is None) == (len(parameters) == 2)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"net/kernel": KERNEL}, "no tensor 'net/bias'"),
        ({"net/kernel": KERNEL, "net/bias": BIAS, "net/more": BIAS}, "a tensor 'net/more', and the model none"),
        (
            {"net/kernel": KERNEL.T.copy(), "net/bias": BIAS},
            r"'net/kernel' of .* \(3, 2\), and the model's weight \(2, 3\)",
        ),
        ([KERNEL], "1 tensors without names, and the model 2 trainable weights of 3"),
        ([BIAS, KERNEL], "tensor '0' of"),
    ],
)
def test_what_a_keras_model_has_not_is_named_and_nothing_is_changed(
    tmp_path: Path, parameters: Any, expected: str
) -> None:
    path = CheckpointFolder(tmp_path).write(a_snapshot(parameters))
    model = a_model()
    with pytest.raises(distnet.ManifestMismatch, match=expected):
        load_into_keras(path, model)
    assert [weight.value for weight in model.weights] == [None] * 3
    with pytest.raises(distnet.ConfigError, match="holds no moving average"):
        load_into_keras(path, model, ema=True)


def test_parameters_go_into_a_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    parameters = {"weight": np.ones((2, 3), np.float32), "bias": np.full(2, 5, np.float32)}
    CheckpointFolder(tmp_path).write(a_snapshot(parameters))
    state = torch_state_dict(tmp_path)
    layer.load_state_dict(state)
    state["bias"] += 1  # memory of its own
    assert layer.bias.tolist() == [5, 5]
