"""A member of process groups that does what its test tells it: JSON lines in on stdin, one JSON line out for each.

A real process, so that a test can kill it or stop it. It ends with its stdin, so it never outlives the test.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distnet

sys.path.insert(0, str(Path(__file__).parents[1]))
from group_arrays import encoded, made


class Member:
    """What a test can ask for; each method's result is sent back as JSON."""

    def __init__(self) -> None:
        self.groups: dict[str, distnet.ProcessGroup] = {}
        self.works: list[distnet.Work[Any]] = []
        self.coordinator: distnet.GroupCoordinator | None = None

    def host(self, address: str) -> str:
        """Start a coordinator, and return its address."""
        self.coordinator = distnet.GroupCoordinator(address)
        return self.coordinator.address

    def enter(self, group: str, address: str | None, rank: int | None, size: int | None, **options: Any) -> Any:
        """Become a member of a group, which has this name unless told otherwise."""
        self.groups[group] = distnet.ProcessGroup(address, rank, size, **{"name": group, **options})
        made_group = self.groups[group]
        return [made_group.rank, made_group.size, made_group.name, made_group.transport]

    def part(self, group: str, of: str, ranks: list[int], name: str | None = None) -> Any:
        """Make a group of some ranks of another."""
        new = self.groups[of].new_group(ranks, name)
        if new is None:
            return None
        self.groups[group] = new
        return [new.rank, new.size, new.transport]

    def leave(self, group: str) -> None:
        """Leave a group in order."""
        self.groups.pop(group).close()

    def abandon(self) -> None:
        """Leave all groups, without order; what each test begins with."""
        for group in self.groups.values():
            group._native.abandon()
        self.groups.clear()
        self.works.clear()
        if self.coordinator is not None:
            self.coordinator.stop(patience=0.0)
            self.coordinator = None

    def call(self, group: str, call: str, mark: str = "", **arguments: Any) -> Any:
        """Do one operation; a file at `mark` says that it is next."""
        if mark:
            Path(mark).touch()
        return encoded(getattr(self.groups[group], call)(**self._real(group, arguments)))

    def calls(self, group: str, calls: list[dict[str, Any]]) -> Any:
        """Do some operations one after another; return each one's result, or the name and text of its error."""
        results = []
        for one in calls:
            try:
                results.append(self.call(group, **one))
            except distnet.DistNetError as error:
                results.append([type(error).__name__, str(error)])
        return results

    def begin(self, group: str, calls: list[dict[str, Any]], order: list[int] | None = None) -> Any:
        """Begin some operations, wait for them in this order, and return the results in that of the calls."""
        works = []
        for one in calls:
            arguments = dict(one)
            call = getattr(self.groups[group], f"begin_{arguments.pop('call')}")
            works.append(call(**self._real(group, arguments)))
        results: list[Any] = [None] * len(works)
        for index in order or range(len(works)):
            results[index] = encoded(works[index].wait())
        assert all(work.done() for work in works)
        return results

    def begin_and_keep(self, group: str, call: str, **arguments: Any) -> bool:
        """Begin one operation, keep it, and return whether it is done."""
        self.works.append(getattr(self.groups[group], f"begin_{call}")(**self._real(group, arguments)))
        return self.works[-1].done()

    def done(self) -> list[bool]:
        """Return which of those that were kept are done."""
        return [work.done() for work in self.works]

    def wait(self, index: int, timeout: float | None = None) -> Any:
        """Wait for one that was kept."""
        return encoded(self.works[index].wait(timeout))

    def threads(self, group: str, calls: list[list[dict[str, Any]]]) -> Any:
        """Do lists of calls, each in a thread of its own; return the results."""
        gate = threading.Barrier(len(calls))

        def run(mine: list[dict[str, Any]]) -> Any:
            gate.wait()
            return self.calls(group, mine)

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))

    def until_it_fails(self, group: str, call: str, mark: str, **arguments: Any) -> Any:
        """Repeat one operation until it raises; return the error and the one that the next operation raises.

        A file at `mark` appears after the first.
        """
        group_of = self.groups[group]
        texts: list[list[Any]] = []
        while len(texts) < 2:
            try:
                getattr(group_of, call)(**self._real(group, arguments))
                Path(mark).touch()
            except distnet.DistNetError as error:
                texts.append([type(error).__name__, str(error), time.monotonic()])
        return texts

    def _real(self, group: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments with its arrays in the place of what they are made of."""
        found = {name: value for name, value in arguments.items() if name not in ("ml_dtypes", "of_rank")}
        rank = arguments.get("of_rank", self.groups[group].rank)
        for name in ("array", "out"):
            if isinstance(found.get(name), dict):
                found[name] = self._typed(made(found[name], rank), arguments)
            elif found.get(name) == "array":  # in place
                found[name] = found["array"]
        given = arguments.get("array", arguments.get("out"))
        if isinstance(given, dict) and given["dtype"] == "bfloat16" and "ml_dtypes" not in arguments:
            found["dtype"] = "bfloat16"
        return found

    def _typed(self, array: Any, arguments: dict[str, Any]) -> Any:
        if "ml_dtypes" not in arguments:
            return array
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)


def main() -> None:
    """Answer requests until stdin ends."""
    member, pending = Member(), b""
    while chunk := os.read(0, 1 << 16):
        pending += chunk
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            request = json.loads(line)
            began = time.monotonic()
            try:
                answer: dict[str, Any] = {"result": getattr(member, request.pop("do"))(**request)}
            except (Exception, KeyboardInterrupt) as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            answer["seconds"] = time.monotonic() - began
            text = json.dumps(answer).encode() + b"\n"
            while text:
                text = text[os.write(1, text) :]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(json.dumps({"result": "ready"}), flush=True)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
