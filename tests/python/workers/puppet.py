"""A worker process that does what its test tells it: JSON lines in on stdin, one JSON line out for each.

A real process with a client of its own, so that a test can kill it, stop it, or have it race with others. It ends with
its stdin, so it never outlives the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import distnet

Array = npt.NDArray[np.float32]
THIRD = np.float32(1 / 3)  # no byte of it is 0, so half of it beside half of a 0 is neither


class CheckError(AssertionError):
    """What a reply holds is not what the contract says."""


def told() -> bool:
    """Whether the test has sent another line."""
    return bool(select.select([0], [], [], 0)[0])


def unit_gradients(shapes: list[tuple[int, ...]], cells: list[int], value: float) -> list[Array]:
    """Gradients of zeros, but for `value` in some cells of the flattened model (without padding)."""
    flat = np.zeros(sum(int(np.prod(shape)) for shape in shapes), np.float32)
    flat[cells] = value
    arrays, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(flat[start : start + size].reshape(shape).copy())
        start += size
    return arrays


def flattened(arrays: Any) -> Array:
    """Return all elements of a reply as one vector (without padding)."""
    values = list(arrays.values()) if isinstance(arrays, dict) else arrays
    return np.concatenate([np.ravel(value) for value in values])


def digest(arrays: Any) -> str:
    """Return what tells two replies apart, to the bit."""
    return hashlib.sha256(flattened(arrays).tobytes()).hexdigest()


class Puppet:
    """What a test can ask for; each method's result is sent back as JSON."""

    def __init__(self) -> None:
        self.client: distnet.Client = None  # type: ignore[assignment]  # until connect()
        self.handles: list[distnet.Handle] = []
        self.warnings: list[str] = []
        self.broken_off: tuple[Array, Array] = (np.empty(0, np.float32), np.empty(0, np.float32))

    def connect(self, start: int = 0, value: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Connect; `parameters` may be shapes, to bring arrays of them that hold `value` (or the rank) everywhere."""
        os.environ["DISTNET_START"] = str(start)
        if "parameters" in arguments:
            brought = (arguments["rank"] or 0) if value is None else value
            arguments["parameters"] = [np.full(shape, brought, "f4") for shape in arguments["parameters"]]
        self.warnings.clear()
        self.client = distnet.connect(**arguments)
        return {"transport": self.client.transport, "shapes": self.client.shapes, "round": self.client.round}

    def nothing(self) -> None:
        """End a call that runs until told."""

    def close(self, mark: str = "") -> None:
        """Leave in order; a file at `mark` says that the call is next."""
        if mark:
            Path(mark).touch()
        if self.client is not None:
            self.client.close()

    def abandon(self) -> None:
        """Leave as a worker does that died."""
        if self.client is not None:
            self.client._native.abandon()
        self.handles.clear()
        self.client = None  # type: ignore[assignment]

    def closed(self) -> bool:
        """Return what the client says of that."""
        return self.client.closed

    def warned(self) -> list[str]:
        """Return the warnings of DistNet since the last connect()."""
        return self.warnings

    def fork_a_child(self) -> int:
        """Fork a process that holds all that this one has, as a loader does, and return its id; the test ends it."""
        child = os.fork()
        if child == 0:
            signal.alarm(120)  # whatever becomes of the test
            while True:
                signal.pause()
        return child

    def pull(self, ema: bool = False) -> list[float]:
        """Return the first cells, as many as JSON should carry."""
        return [float(value) for value in flattened(self.client.pull(ema=ema))[:64]]

    def state(self) -> dict[str, Any]:
        """Return what the client says of its newest reply."""
        client = self.client
        return {
            name: getattr(client, name)
            for name in ("versions", "version", "accepted", "applied", "staleness", "round", "transport")
        }

    def push_full(self, value: float | None, call: str = "push_pull", mark: str = "", **settings: float) -> list[float]:
        """Push a gradient with the same value in every cell, or abstain; return the reply's first cells.

        A file at `mark` says that the call is next.
        """
        gradients = None if value is None else [np.full(shape, value, np.float32) for shape in self.client.shapes]
        if mark:
            Path(mark).touch()
        reply = getattr(self.client, call)(gradients, **settings)
        return [] if reply is None else [float(cell) for cell in flattened(reply)[:64]]

    def break_off_halfway(self, value: float) -> int:
        """Push, and break the call off once the reply's first cell lies in its caller's array; return how many do.

        The model must be a single tensor.
        """
        (shape,) = self.client.shapes
        out, over = np.full(shape, np.nan, np.float32), threading.Event()

        def press_ctrl_c() -> None:
            while not over.wait(0.001):
                if not np.isnan(out[0]):
                    os.kill(os.getpid(), signal.SIGINT)
                    return

        pressing = threading.Thread(target=press_ctrl_c)
        pressing.start()
        try:
            self.client.push_pull([np.full(shape, value, np.float32)], out=[out])
            raise CheckError("the call came to its end")
        except KeyboardInterrupt:
            self.broken_off = out, out.copy()
        finally:
            over.set()
            pressing.join()
        return int(np.count_nonzero(~np.isnan(out)))

    def push_once_more(self, value: float) -> list[float]:
        """Push into another array; return the values it holds then, each once. The one before must be as it was."""
        (shape,) = self.client.shapes
        (reply,) = self.client.push_pull([np.full(shape, value, np.float32)], out=[np.full(shape, np.nan, np.float32)])
        given_up, as_it_was = self.broken_off
        if not np.array_equal(given_up, as_it_was, equal_nan=True):
            raise CheckError("a call that was broken off wrote to its caller's array afterwards")
        return sorted({float(cell) for cell in reply})

    def barrier(self, timeout: float | None = None, mark: str = "") -> list[float]:
        """Wait for all ranks; return the first cells as a pull then sees them. A file at `mark`: the call is next."""
        if mark:
            Path(mark).touch()
        self.client.barrier(timeout=timeout)
        return self.pull()

    def push_random_and_finish(self, seed: int, pushes: int) -> str:
        """Push random gradients, then finish; return what the parameters are, to the bit."""
        self.push_random(seed, pushes)
        return self.finish()

    def finish(self, timeout: float | None = None) -> str:
        """Finish; return what the parameters are, to the bit."""
        return digest(self.client.finish(timeout=timeout))

    def begin_push(self, value: float) -> None:
        """Begin a push_pull, and keep its handle."""
        self.handles.append(self.client.begin_push_pull([np.full(s, value, np.float32) for s in self.client.shapes]))

    def wait_for_push(self) -> list[float]:
        """Wait for the oldest handle; return the reply's first cells."""
        return [float(cell) for cell in flattened(self.handles.pop(0).wait())[:64]]

    def push_cells(self, cells: list[int], shared: int, value: float = -1.0, call: str = "push_pull") -> dict[str, int]:
        """Push one gradient a cell: `value` there and in cell `shared`; report how many of its own the replies lack."""
        lag = 0
        for count, cell in enumerate(cells, 1):
            reply = getattr(self.client, call)(unit_gradients(self.client.shapes, [cell, shared], value))
            if reply is not None:
                seen = flattened(reply)
                lag = max(lag, count - int(np.count_nonzero(seen[cells[:count]])))
                if np.any(seen[cells[count:]]):
                    raise CheckError("a reply holds a push that was not pushed yet")
        return {"lag": lag, "accepted": self.client.accepted}

    def push_many(self, value: float, pushes: int, call: str = "push") -> None:
        """Push the same value in every cell some times."""
        gradients = [np.full(shape, value, np.float32) for shape in self.client.shapes]
        for _ in range(pushes):
            getattr(self.client, call)(gradients)

    def push_and_leave(self, value: float, pushes: int) -> float:
        """Push the same value in every cell some times, leave, and return a cell of the last reply."""
        cell = 0.0
        for _ in range(pushes):
            cell = self.push_full(value)[0]
        self.client.close()
        return cell

    def come_and_go(self, times: int, value: float, **arguments: Any) -> None:
        """Connect, push the same value in every cell, and leave, some times."""
        for _ in range(times):
            with distnet.connect(**arguments) as client:
                client.push([np.full(shape, value, np.float32) for shape in client.shapes])

    def connect_as_soon_as_possible(self, **arguments: Any) -> None:
        """Connect to a server that may not be there yet, without the pauses that connect() makes."""
        give_up_s = time.monotonic() + 30
        while True:
            try:
                self.connect(connect_timeout=0, **arguments)
                return
            except distnet.ConnectError:
                if time.monotonic() > give_up_s:
                    raise

    def push_as_soon_as_possible(self, push_value: float, pushes: int, **arguments: Any) -> list[list[float]]:
        """Connect to a server that may not be there yet and push at once; return a cell and the versions each time."""
        self.connect_as_soon_as_possible(**arguments)
        seen = []
        for _ in range(pushes):
            cell = self.push_full(push_value)[0]
            seen.append([cell, *self.client.versions])
        self.client.close()
        return seen

    def push_until_told(self, value: float = -1.0, toggle: bool = False, call: str = "push") -> int:
        """Push a value in every cell, or it and its opposite by turns, until the next line; leave; return how often."""
        gradients = [[np.full(shape, sign, np.float32) for shape in self.client.shapes] for sign in (value, -value)]
        count = 0
        while not told() or (toggle and count % 2):
            getattr(self.client, call)(gradients[count % 2 if toggle else 0])
            count += 1
        self.client.close()  # so that a round does not wait for a worker that was told first
        return count

    def push_random(self, seed: int, rounds: int, call: str = "push_pull") -> list[str]:
        """Push random gradients; return what every reply was, to the bit."""
        random = np.random.default_rng(seed)
        replies = []
        for _ in range(rounds):
            gradients = [random.standard_normal(shape).astype(np.float32) for shape in self.client.shapes]
            replies.append(digest(getattr(self.client, call)(gradients)))
        return replies

    def push_and_compare(self, pushes: int) -> dict[str, int]:
        """Push -1 everywhere; count replies whose cells are not their shard's version."""
        gradients = [np.full(shape, -1.0, np.float32) for shape in self.client.shapes]
        mixed = 0
        for _ in range(pushes):
            mixed += not _is_one_version(flattened(self.client.push_pull(gradients)), self.client.versions)
        return {"mixed": mixed}

    def pull_and_compare(self, pulls: int, alias: bool = False) -> dict[str, int]:
        """Pull while others push -1 everywhere; count replies whose cells are not their shard's version.

        It pulls for at most a minute, which may be for less than `pulls` on a busy machine; and for longer than `pulls`
        until the others have been seen to write: they may not have had their turn yet.
        """
        mixed = distinct = made = 0
        last: list[int] = []
        give_up_s = time.monotonic() + 60
        while (made < pulls or distinct <= 20) and time.monotonic() < give_up_s:
            made += 1
            reply = self.client.pull(alias=alias)
            seen = flattened(reply)
            versions = self.client.versions
            if last and any(new < old for new, old in zip(versions, last, strict=True)):
                raise CheckError(f"versions went back from {last} to {versions}")
            distinct += versions != last
            last = list(versions)
            mixed += not _is_one_version(seen, versions)
            if alias and not np.array_equal(flattened(reply), seen):
                mixed += 1
        return {"mixed": mixed, "distinct": distinct}

    def pull_and_collect(self, pulls: int) -> dict[str, Any]:
        """Pull while others push; return every bit pattern seen, and how many replies held more than one."""
        patterns: set[int] = set()
        mixed = 0
        for _ in range(pulls):
            seen = flattened(self.client.pull()).view(np.uint32)
            runs = [0, *(np.flatnonzero(seen[1:] != seen[:-1]) + 1)]
            mixed += len(runs) > 1
            patterns.update(int(pattern) for pattern in seen[runs])
        return {"patterns": sorted(patterns), "mixed": mixed}

    def kill_while_bringing(self, seconds: float, **arguments: Any) -> None:
        """Bring a model, to be killed by the kernel's own clock at some moment of it, or after it."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        self.connect(**arguments)
        while True:
            signal.pause()

    def kill_during_push(self, pushes: int, seconds: float) -> None:
        """Push -1 everywhere, to be killed by the kernel's own clock at some moment of it."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm's default kills without Python
        signal.setitimer(signal.ITIMER_REAL, seconds)
        gradients = [np.full(shape, -1.0, np.float32) for shape in self.client.shapes]
        for _ in range(pushes):
            self.client.push(gradients)


def _is_one_version(seen: Array, versions: list[int]) -> bool:
    """Whether each shard's cells all equal that shard's version; cells are in the order of shards."""
    borders = np.flatnonzero(seen[1:] != seen[:-1]) + 1
    parts = [seen[start] for start in (0, *borders)]
    merged = [version for i, version in enumerate(versions) if i == 0 or version != versions[i - 1]]
    return parts == merged


def main() -> None:
    """Answer requests until stdin ends."""
    puppet, pending = Puppet(), b""
    warnings.simplefilter("always", distnet.DistNetWarning)
    warnings.showwarning = lambda message, *_, **__: puppet.warnings.append(str(message))
    while chunk := os.read(0, 1 << 16):
        pending += chunk
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            request = json.loads(line)
            began = time.monotonic()
            try:
                answer: dict[str, Any] = {"result": getattr(puppet, request.pop("do"))(**request)}
            except (Exception, KeyboardInterrupt) as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            answer["seconds"] = time.monotonic() - began
            os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    # A shell that starts the tests in the background has them ignore SIGINT, and so their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(json.dumps({"result": "ready"}), flush=True)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
