"""Checkpoints of a server that trains, and the last one."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_case import a_snapshot, names_in, push
from small_model import random_model
from test_bad_numbers import FLOATS, careless_worker, ones_but
from worker_processes import wait_until

import distnet
from distnet.checkpoint import CheckpointFolder, load

LITTLE_MEMORY = Path(__file__).parent / "workers" / "little_memory.py"


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
            assert (checkpoint.parameters[0] == -checkpoint.version).all()

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
        wait_until(lambda: not server._checkpoints.writing, "the server is being stopped")
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
    command = [sys.executable, str(LITTLE_MEMORY), str(tmp_path), "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "done MemoryError\n", done.stderr
    (array,) = load(tmp_path).parameters
    assert np.all(array == 1)
