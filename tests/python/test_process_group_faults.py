"""What goes wrong in a process group is soon one error on every rank: arguments that differ, members that are lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from group_arrays import assert_equal, decoded, reduced, spec
from group_members import Group, enter, over_real_groups
from worker_processes import Worker, WorkerError, over_transports, stop_process, wait_until

SOON_S = 10.0  # for what takes milliseconds on a machine that is not busy
ARRAY = spec((10,))

# What one rank calls while the others call allreduce of ARRAY, and words that say so.
DIFFERENT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "kind": ({"call": "allgather", "array": ARRAY}, ("allgather", "allreduce")),
    "dtype": ({"call": "allreduce", "array": spec((10,), "float64")}, ("float64", "float32")),
    "shape": ({"call": "allreduce", "array": spec((12,))}, ("(12,)", "(10,)")),
    "dimensions": ({"call": "allreduce", "array": spec((10, 1))}, ("(10, 1)", "(10,)")),
    "op": ({"call": "allreduce", "array": ARRAY, "op": "max"}, ("max", "sum")),
    "nothing": ({"call": "barrier"}, ("barrier", "allreduce")),
}


def errors_of(outcomes: list[Any]) -> list[WorkerError]:
    """Return the outcomes, all of which are errors."""
    assert all(isinstance(outcome, WorkerError) for outcome in outcomes), outcomes
    return outcomes


def assert_one_mismatch(outcomes: list[Any], words: tuple[str, ...], ranks: tuple[int, ...]) -> None:
    """All ranks raised the same CollectiveMismatch, which says these words and names these ranks."""
    errors = errors_of(outcomes)
    assert {error.name for error in errors} == {"CollectiveMismatch"}
    (text,) = {error.message for error in errors}
    assert [word for word in (*words, *(f"rank {rank}" for rank in ranks)) if word not in text] == [], text


def assert_it_goes_on(group: Group) -> None:
    for result in group.call("allreduce", array=ARRAY):
        assert_equal(result, reduced(group.arrays(ARRAY), "sum", "float32"))


# ---- arguments that differ -----------------------------------------------------------------------------------------
@over_real_groups
@pytest.mark.parametrize("what", DIFFERENT)
@pytest.mark.parametrize("name", [None, "by name"])
def test_arguments_that_differ_are_one_error_on_all_ranks(group: Group, what: str, name: str | None) -> None:
    odd, words = DIFFERENT[what]
    last = group.size - 1
    for rank, member in enumerate(group.members):
        call = odd if rank == last else {"call": "allreduce", "array": ARRAY}
        member.begin("call", group=group.name, name=name, **call)
    assert_one_mismatch(group.outcomes(), words, (last,))
    assert_it_goes_on(group)


@over_real_groups
def test_roots_that_differ_are_one_error_on_all_ranks(group: Group) -> None:
    for call, way in (("broadcast", "from"), ("gather", "to")):
        each = [{"root": 1 if rank == 0 else 0} for rank in group.ranks]
        words = (call, f"{way} rank 0", f"{way} rank 1")
        assert_one_mismatch(group.errors(call, each, array=ARRAY), words, (0,))
    assert_it_goes_on(group)


@over_real_groups
def test_rows_that_differ_behind_the_first_dimension_are_one_error(group: Group) -> None:
    each = [{"array": spec((3, 5 if rank else 4))} for rank in group.ranks]
    for call in ("allgather", "alltoall"):
        assert_one_mismatch(group.errors(call, each), (call,), (0,))
    assert_it_goes_on(group)


@over_real_groups
def test_splits_that_differ_are_one_error(group: Group) -> None:
    splits = [2] * group.size
    each = [{"splits": splits if rank else [3, 1, *splits[2:]]} for rank in group.ranks]
    array = spec((2 * group.size, 3))
    assert_one_mismatch(group.errors("reduce_scatter", each, array=array), ("reduce_scatter",), (0,))
    assert_it_goes_on(group)


@over_real_groups
def test_a_mismatch_of_large_arrays_leaves_nothing_behind(group: Group) -> None:
    for _ in range(3):
        each = [{"array": spec((400_000 + (rank == 0),))} for rank in group.ranks]
        assert_one_mismatch(group.errors("allreduce", each), ("(400001,)", "(400000,)"), (0,))
        assert_it_goes_on(group)


@over_real_groups
def test_of_several_on_their_way_only_the_one_that_differs_fails(group: Group) -> None:
    for rank, member in enumerate(group.members):
        member.do("begin_and_keep", group=group.name, call="allreduce", array=spec((5,)))
        member.do("begin_and_keep", group=group.name, call="allreduce", array=spec((5 + (rank == 0),)))
        member.do("begin_and_keep", group=group.name, call="allreduce", array=spec((5,), seed=2))
    for index, given in ((-3, spec((5,))), (-1, spec((5,), seed=2))):
        for member in group.members:
            assert_equal(decoded(member.do("wait", index=index)), reduced(group.arrays(given), "sum", "float32"))
    for member in group.members:
        with pytest.raises(WorkerError) as error:
            member.do("wait", index=-2)
        assert error.value.name == "CollectiveMismatch"


@over_real_groups
def test_a_message_of_another_length_is_an_error_on_both_sides(group: Group) -> None:
    sender, receiver = group.members[0], group.members[1]
    sender.begin("call", group=group.name, call="send", array=spec((3,)), to=1)
    receiver.begin("call", group=group.name, call="recv", out=spec((4,)), source=0)
    with pytest.raises(WorkerError, match=r"rank 0 sends 12 bytes of float32.*rank 1 receives 16 bytes") as error:
        receiver.result()
    assert error.value.name == "CollectiveMismatch"
    with pytest.raises(WorkerError, match=r"rank 0 sends 12 bytes of float32.*rank 1 receives 16 bytes"):
        sender.result()
    sender.begin("call", group=group.name, call="send", array=spec((3,)), to=1)
    assert_equal(
        decoded(receiver.do("call", group=group.name, call="recv", out=spec((3,)), source=0)),
        group.arrays(spec((3,)))[0],
    )
    sender.result()


# ---- arguments that make no sense ----------------------------------------------------------------------------------
@over_real_groups
def test_a_call_that_is_refused_takes_no_number(group: Group) -> None:
    with pytest.raises(WorkerError, match="op is 'mean'; did you mean 'average'") as error:
        group.members[0].do("call", group=group.name, call="allreduce", array=ARRAY, op="mean")
    assert error.value.name == "ConfigError"
    assert_it_goes_on(group)


# ---- members that are lost -----------------------------------------------------------------------------------------
def formed(start_members: Callable[[int], list[Worker]], transport: str, size: int, **options: Any) -> Group:
    """Return a group whose coordinator is a process of its own."""
    host, *members = start_members(size + 1)
    return enter(members, "world", host.do("host", address="tcp://127.0.0.1:0"), transport, **options)


@over_transports
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("length", [10, 2_000_000])
def test_a_member_that_is_killed_is_named_by_all_others_at_once(
    start_members: Callable[[int], list[Worker]], transport: str, size: int, length: int, tmp_path: Path
) -> None:
    group = formed(start_members, transport, size)
    victim, others = group.members[1], [member for rank, member in enumerate(group.members) if rank != 1]
    for rank, member in enumerate(group.members):
        mark = str(tmp_path / f"{rank}")
        member.begin("until_it_fails", group=group.name, call="allreduce", array=spec((length,)), mark=mark)
    wait_until(lambda: len(list(tmp_path.iterdir())) == size, "all are at work")
    victim.kill()
    killed_s = time.monotonic()
    for member in others:
        for name, text, raised_s in member.result():
            assert (name, "rank 1" in text) == ("PeerClosed", True), text
            assert raised_s - killed_s < SOON_S


@over_transports
def test_who_waits_for_a_member_that_is_killed_hears_of_it(
    start_members: Callable[[int], list[Worker]], transport: str, tmp_path: Path
) -> None:
    group = formed(start_members, transport, 3)
    waiting: list[dict[str, Any]] = [{"call": "barrier"}, {"call": "recv", "out": ARRAY, "source": 2}]
    for arguments, member in zip(waiting, group.members, strict=False):
        member.wait_until_it_blocks_in("call", tmp_path / str(id(member)), group=group.name, **arguments)
    group.members[2].kill()
    for member in group.members[:2]:
        with pytest.raises(WorkerError, match="rank 2") as error:
            member.result()
        assert error.value.name == "PeerClosed"
        assert error.value.seconds < SOON_S


@over_transports
def test_who_leaves_by_an_exception_is_lost_to_the_others(
    start_members: Callable[[int], list[Worker]], transport: str
) -> None:
    group = formed(start_members, transport, 3)
    group.members[1].do("abandon")
    for member in (group.members[0], group.members[2]):
        with pytest.raises(WorkerError, match="rank 1") as error:
            member.do("call", group=group.name, call="allreduce", array=ARRAY)
        assert error.value.name == "PeerClosed"


@over_transports
def test_who_has_left_in_order_is_named_by_those_who_still_need_it(
    start_members: Callable[[int], list[Worker]], transport: str
) -> None:
    group = formed(start_members, transport, 3)
    group.members[1].do("leave", group=group.name)
    for member in (group.members[0], group.members[2]):
        with pytest.raises(WorkerError, match="rank 1") as error:
            member.do("call", group=group.name, call="allreduce", array=ARRAY)
        assert error.value.name == "PeerClosed"


@over_transports
def test_a_group_without_its_coordinator_is_dead(start_members: Callable[[int], list[Worker]], transport: str) -> None:
    host, *members = start_members(3)
    group = enter(members, "world", host.do("host", address="tcp://127.0.0.1:0"), transport)
    host.kill()
    for rank, member in enumerate(group.members):
        with pytest.raises(WorkerError, match="coordinator") as error:
            member.do("call", group=group.name, call="barrier", name=f"of rank {rank} alone")
        assert error.value.name == "PeerClosed"


@over_transports
def test_a_member_that_is_stopped_is_silent(start_members: Callable[[int], list[Worker]], transport: str) -> None:
    host, *members = start_members(4)
    address = host.do("host", address="tcp://127.0.0.1:0")
    group = enter(members, "world", address, transport, timeout=1.0)
    stop_process(group.members[1].pid)
    try:
        for member in (group.members[0], group.members[2]):
            member.begin("call", group=group.name, call="allreduce", array=ARRAY)
        for member in (group.members[0], group.members[2]):
            with pytest.raises(WorkerError, match="rank 1") as error:
                member.result()
            assert error.value.name in ("PeerClosed", "DeadlineExceeded")
            assert error.value.seconds < SOON_S
    finally:
        group.members[1].signal(signal.SIGCONT)


@over_transports
def test_a_member_that_lives_and_does_not_come_is_named(
    start_members: Callable[[int], list[Worker]], transport: str
) -> None:
    group = formed(start_members, transport, 3, operation_timeout=0.5)
    for member in group.members[:2]:
        member.begin("call", group=group.name, call="allreduce", array=ARRAY)
    for member in group.members[:2]:
        with pytest.raises(WorkerError, match="rank 2") as error:
            member.result()
        assert error.value.name in ("DeadlineExceeded", "PeerClosed")
        assert error.value.seconds < SOON_S
    assert "DeadlineExceeded" in {member.failure for member in group.members[:2]}


@over_transports
def test_a_new_group_forms_after_one_that_lost_a_member(
    start_members: Callable[[int], list[Worker]], transport: str
) -> None:
    host, *members = start_members(4)
    address = host.do("host", address="tcp://127.0.0.1:0")
    group = enter(members[:2], "world", address, transport)
    group.members[1].kill()
    with pytest.raises(WorkerError, match="rank 1"):
        group.members[0].do("call", group=group.name, call="barrier")
    group.members[0].do("abandon")
    again = enter([members[0], members[2]], "world", address, transport)
    assert [float(result) for result in again.call("allreduce", array=1.0)] == [2.0, 2.0]
    again.do("leave")


# ---- members that do not come together -----------------------------------------------------------------------------
@over_transports
def test_a_rank_that_never_comes_is_named(start_members: Callable[[int], list[Worker]], transport: str) -> None:
    host, *members = start_members(3)
    address = host.do("host", address="tcp://127.0.0.1:0")
    for rank, member in zip((0, 2), members, strict=True):
        member.begin("enter", group="world", address=address, rank=rank, size=3, transport=transport, timeout=1.0)
    for member in members:
        with pytest.raises(WorkerError, match=r"rank 1|ranks 1") as error:
            member.result()
        assert error.value.name == "DeadlineExceeded"
        assert error.value.seconds < SOON_S


def test_nobody_at_the_address_is_a_connect_error(start_members: Callable[[int], list[Worker]]) -> None:
    host, member = start_members(2)
    address = host.do("host", address="tcp://127.0.0.1:0")
    host.kill()
    with pytest.raises(WorkerError) as error:
        member.do("enter", group="world", address=address, rank=0, size=1, timeout=0.2)
    assert error.value.name == "ConnectError"


def test_members_may_come_before_the_coordinator(start_members: Callable[[int], list[Worker]]) -> None:
    host, member = start_members(2)
    name = f"shm://distnet-test-{host.pid}"
    member.begin("enter", group="world", address=name, rank=0, size=1)
    assert not member.has_answered()
    host.do("host", address=name)
    assert member.result()[:2] == [0, 1]
    member.do("leave", group="world")


def test_sizes_that_differ_are_refused_on_all_ranks(start_members: Callable[[int], list[Worker]]) -> None:
    host, *members = start_members(3)
    address = host.do("host", address="tcp://127.0.0.1:0")
    for rank, (member, size) in enumerate(zip(members, (2, 3), strict=True)):
        member.begin("enter", group="world", address=address, rank=rank, size=size, timeout=SOON_S)
    for member in members:
        with pytest.raises(WorkerError, match=r"(?s)2.*3|3.*2") as error:
            member.result()
        assert error.value.name == "ConfigError"


def test_a_second_member_of_a_rank_is_refused_and_the_group_goes_on(
    start_members: Callable[[int], list[Worker]],
) -> None:
    host, first, second, third = start_members(4)
    address = host.do("host", address="tcp://127.0.0.1:0")
    group = enter([first, second], "world", address, "shm")
    with pytest.raises(WorkerError, match="rank 1") as error:
        third.do("enter", group="world", address=address, rank=1, size=2, timeout=SOON_S)
    assert error.value.name == "ConfigError"
    assert_it_goes_on(group)
