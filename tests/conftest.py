"""Fails every test that leaves something behind: a process, a thread, a name in /dev/shm, or memory of the engine.

A fixture of a wider scope (a server that several tests share) is set up before the function-scoped check looks for the
first time, so only what the test itself started counts against it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from group_members import group, member_pool, start_members
from worker_processes import start_workers, worker_pool, workers

# What tests of several backends share asserts as a test does: a failure shows the values.
pytest.register_assert_rewrite("keras_contract", "keras_ranks", "keras_wrong_use")

# Fixtures for all tests.
__all__ = ["group", "member_pool", "start_members", "start_workers", "worker_pool", "workers"]

SHARED_MEMORY = Path("/dev/shm")
OURS = "distnet"
GRACE_S = 2.0
TIMER_OF_PYTEST_TIMEOUT = "pytest_timeout"


@dataclasses.dataclass(frozen=True)
class Belongings:
    """What this process has at one moment that a test could leave behind."""

    children: frozenset[int]
    threads: frozenset[threading.Thread]
    engine_threads: frozenset[int]
    memory_files: frozenset[int]
    shared_memory_names: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        """Look, without waiting."""
        return cls(
            children=_children(),
            threads=_python_threads(),
            engine_threads=_engine_threads(),
            memory_files=_memory_files(),
            shared_memory_names=frozenset(n for n in os.listdir(SHARED_MEMORY) if OURS in n)
            if SHARED_MEMORY.is_dir()
            else frozenset(),
        )

    def describe_beyond(self, before: Belongings) -> list[str]:
        """A line for each thing that is here now and was not before."""
        return [
            *(f"child process {_describe_process(pid)}" for pid in sorted(self.children - before.children)),
            *(f"thread {thread.name!r} (not a daemon)" for thread in self.threads - before.threads),
            *(f"engine thread {_thread_name(tid)!r}" for tid in sorted(self.engine_threads - before.engine_threads)),
            *(f"memory file (descriptor {fd})" for fd in sorted(self.memory_files - before.memory_files)),
            *(f"/dev/shm/{name}" for name in sorted(self.shared_memory_names - before.shared_memory_names)),
        ]


def _read(path: Path) -> str:
    """The text of a file of /proc, or nothing when its process or thread has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _python_threads() -> frozenset[threading.Thread]:
    """Those that would keep the interpreter from ending."""
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return frozenset(t for t in others if not t.daemon and not t.name.startswith(TIMER_OF_PYTEST_TIMEOUT))


def _children() -> frozenset[int]:
    listings = (_read(task / "children") for task in Path("/proc/self/task").iterdir())
    return frozenset(int(pid) for listing in listings for pid in listing.split())


def _thread_name(tid: int) -> str:
    return _read(Path(f"/proc/self/task/{tid}/comm")).strip()


def _engine_threads() -> frozenset[int]:
    """Native threads that carry the engine's name."""
    tids = (int(task.name) for task in Path("/proc/self/task").iterdir())
    return frozenset(tid for tid in tids if _thread_name(tid).startswith(OURS))


def _memory_files() -> frozenset[int]:
    """Descriptors of the engine's memory files."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith(f"/memfd:{OURS}"):
                found.add(int(entry.name))
    return frozenset(found)


def _describe_process(pid: int) -> str:
    command = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
    return f"{pid}: {command or 'ended, but nobody waited for it'}"


def _give_time_to_end(before: Belongings) -> None:
    """Wait for what is ending anyway; each wait ends with the thing itself, or after GRACE_S."""
    now = Belongings.now()
    for thread in now.threads - before.threads:
        thread.join(GRACE_S)
    for pid in now.children - before.children:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            select.select([pidfd], [], [], GRACE_S)
        finally:
            os.close(pidfd)


def _leftovers(before: Belongings) -> list[str]:
    if not Belongings.now().describe_beyond(before):
        return []
    gc.collect()  # a client or server in a reference cycle closes here
    _give_time_to_end(before)
    return Belongings.now().describe_beyond(before)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the test that started something which is still there after it."""
    before = Belongings.now()
    yield
    left = _leftovers(before)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def nothing_left_behind_by_the_session() -> Iterator[None]:
    """The same over the whole run, so that fixtures of wider scopes are held to it, too."""
    before = Belongings.now()
    yield
    left = _leftovers(before)
    if left:
        pytest.fail("the tests left behind:\n  " + "\n  ".join(left), pytrace=False)
