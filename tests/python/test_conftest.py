"""The check of conftest.py sees what it is there to see."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import conftest
import pytest
from conftest import Belongings


def test_a_child_process_is_seen_until_it_is_waited_for() -> None:
    before = Belongings.now()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (line,) = Belongings.now().describe_beyond(before)
        assert f"child process {child.pid}" in line
    finally:
        child.communicate(b"\n", timeout=30)
    assert Belongings.now().describe_beyond(before) == []


def test_a_thread_is_seen_until_it_ends() -> None:
    before = Belongings.now()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="lingering")
    thread.start()
    assert Belongings.now().describe_beyond(before) == ["thread 'lingering' (not a daemon)"]
    release.set()
    thread.join(30)
    assert Belongings.now().describe_beyond(before) == []


def test_a_thread_with_the_name_of_the_engine_is_seen() -> None:
    before = Belongings.now()
    named, release = threading.Event(), threading.Event()

    def engine_thread() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("distnet-test")
        named.set()
        release.wait(30)

    thread = threading.Thread(target=engine_thread, daemon=True)
    thread.start()
    assert named.wait(30)
    assert Belongings.now().describe_beyond(before) == ["engine thread 'distnet-test'"]
    release.set()
    thread.join(30)


def test_a_memory_file_of_the_engine_is_seen() -> None:
    before = Belongings.now()
    descriptor = os.memfd_create("distnet")
    try:
        assert Belongings.now().describe_beyond(before) == [f"memory file (descriptor {descriptor})"]
    finally:
        os.close(descriptor)


def test_a_name_in_shared_memory_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "SHARED_MEMORY", tmp_path)  # other tests look at the real one meanwhile
    before = Belongings.now()
    (tmp_path / "distnet-test").touch()
    assert Belongings.now().describe_beyond(before) == ["/dev/shm/distnet-test"]
