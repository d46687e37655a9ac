"""A checkpoint's file holds a server's whole state; damage is seen, and a server goes on from it to the bit."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_case import a_snapshot, push
from small_model import push_rounds, random_model
from test_restore import OPTIMIZERS, assert_same
from worker_processes import SEMANTICS_AND_SHARDS, changed, serve

import distnet
from distnet.checkpoint import CheckpointFolder, Every, load, parse_every


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
        "groups": {"b*": distnet.Group(0.5, 0.0, {"betas": (0.7, 0.9), "eps": 0.1}), "*": distnet.Group()},
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
