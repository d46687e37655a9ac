"""A folder of checkpoints: the old or the new one is always there, and one server has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_case import a_snapshot, names_in
from small_model import random_model

import distnet
from distnet.checkpoint import CheckpointFolder, load

KILLED_WRITER = Path(__file__).parent / "workers" / "killed_writer.py"


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
