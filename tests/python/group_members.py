"""Processes that are members of groups, told what to do together, for the tests of process groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from group_arrays import Array, decoded, made
from worker_processes import TRANSPORTS, Worker, WorkerError, started

MEMBER = Path(__file__).parent / "workers" / "member.py"
SIZES = (1, 2, 3, 4)
GROUPS = [(transport, size) for transport in TRANSPORTS for size in SIZES]

over_groups = pytest.mark.parametrize("group", GROUPS, ids=[f"{t}-{s}" for t, s in GROUPS], indirect=True)
over_real_groups = pytest.mark.parametrize(  # of more than one member
    "group", [(t, s) for t, s in GROUPS if s > 1], ids=[f"{t}-{s}" for t, s in GROUPS if s > 1], indirect=True
)
over_pairs_and_fours = pytest.mark.parametrize(
    "group",
    [(t, s) for t, s in GROUPS if s in (2, 4)],
    ids=[f"{t}-{s}" for t, s in GROUPS if s in (2, 4)],
    indirect=True,
)


class Group:
    """Members of one group, by rank; each test's calls end before the next one's begin."""

    def __init__(self, members: Sequence[Worker], name: str) -> None:
        self.members = list(members)
        self.name = name

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def ranks(self) -> range:
        return range(self.size)

    def arrays(self, given: dict[str, Any]) -> list[Array]:
        """Return what the ranks bring."""
        return [made(given, rank) for rank in self.ranks]

    def do(self, what: str, each: Sequence[dict[str, Any]] | None = None, /, **same: Any) -> list[Any]:
        """Have every rank do something in this group, and return the results by rank; `each` has a rank's own part."""
        for rank, member in enumerate(self.members):
            member.begin(what, **{"group": self.name, **same, **(each[rank] if each else {})})
        return self.results()

    def call(self, call: str, each: Sequence[dict[str, Any]] | None = None, /, **same: Any) -> list[Any]:
        """Have every rank do one operation."""
        return self.do("call", each, call=call, **same)

    def results(self) -> list[Any]:
        """Return what all ranks were asked for; the first error is raised when all have ended."""
        outcomes = self.outcomes()
        for outcome in outcomes:
            if isinstance(outcome, WorkerError):
                raise outcome
        return outcomes

    def outcomes(self) -> list[Any]:
        """Return what all ranks were asked for, an error among the results."""
        found: list[Any] = []
        for member in self.members:
            try:
                found.append(decoded(member.result()))
            except WorkerError as error:
                found.append(error)
        return found

    def errors(self, call: str, each: Sequence[dict[str, Any]] | None = None, /, **same: Any) -> list[WorkerError]:
        """Have every rank do one operation that raises on each, and return the errors."""
        for rank, member in enumerate(self.members):
            member.begin("call", group=self.name, call=call, **same, **(each[rank] if each else {}))
        outcomes = self.outcomes()
        assert all(isinstance(outcome, WorkerError) for outcome in outcomes), outcomes
        return outcomes


def enter(
    members: Sequence[Worker], name: str, address: str, transport: str, ranks: Sequence[int] = (), **options: Any
) -> Group:
    """Make a group of these members, all of it or those with these ranks, and return it."""
    size = options.pop("size", len(members))
    for member, rank in zip(members, ranks or range(size), strict=True):
        member.begin("enter", group=name, address=address, rank=rank, size=size, transport=transport, **options)
    found = Group(members, name)
    for (rank, told_size, told_name, told), expected in zip(found.results(), ranks or range(size), strict=True):
        assert (rank, told_size, told_name, told) == (expected, size, name, transport)
    return found


class MemberPool:
    """Four members in a group of every size over every transport: starting Python takes longer than most tests."""

    def __init__(self) -> None:
        self._coordinator, *self._members = self._all = started(1 + max(SIZES), MEMBER)
        self.address = self._coordinator.do("host", address="tcp://127.0.0.1:0")
        self.groups = {
            (transport, size): enter(self._members[:size], f"{transport}-{size}", self.address, transport)
            for transport, size in GROUPS
        }

    def end(self) -> None:
        """End all processes, the coordinator's last."""
        for worker in reversed(self._all):
            worker.end()


@pytest.fixture(scope="module")
def member_pool() -> Iterator[list[MemberPool]]:
    """Yield the pool that the tests of a module use one after another, as the only item of a list."""
    pool = [MemberPool()]
    yield pool
    pool[0].end()


@pytest.fixture
def group(member_pool: list[MemberPool], request: pytest.FixtureRequest) -> Iterator[Group]:
    """Yield a group of the pool; a test does not kill its members, and leaves the group as it was."""
    found = member_pool[0].groups[request.param]
    yield found
    try:
        assert not any(member.busy for member in found.members)
        found.call("barrier")
    except BaseException:
        member_pool[0].end()
        member_pool[0] = MemberPool()
        raise


@pytest.fixture
def start_members() -> Iterator[Callable[[int], list[Worker]]]:
    """Start members that the test may kill; they are in no group yet."""
    all_of_them: list[Worker] = []

    def start(count: int) -> list[Worker]:
        new = started(count, MEMBER)
        all_of_them.extend(new)
        return new

    yield start
    for worker in reversed(all_of_them):
        worker.end()
