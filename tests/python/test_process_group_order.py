"""Which operations of a process group belong together: order, names, threads, ranks that join, groups of some ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from group_arrays import FLOATS, assert_equal, decoded, made, reduced, shares, spec
from group_members import (
    GROUPS,
    SIZES,
    Group,
    MemberPool,
    enter,
    over_groups,
    over_pairs_and_fours,
    over_real_groups,
)
from worker_processes import TRANSPORTS, Worker, WorkerError, over_transports, wait_until


def total(group: Group, given: dict[str, Any]) -> Any:
    return reduced(group.arrays(given), "sum", given["dtype"])


# ---- several on their way ------------------------------------------------------------------------------------------
@over_groups
def test_works_are_waited_for_in_any_order(group: Group) -> None:
    specs = [spec((length,), seed=length) for length in (10, 100_000, 1, 0, 5000)]
    calls = [{"call": "allreduce", "array": given} for given in specs]
    orders = list(itertools.permutations(range(len(calls))))[7::17][: group.size]
    for results in group.do("begin", [{"calls": calls, "order": list(order)} for order in orders]):
        for result, given in zip(results, specs, strict=True):
            assert_equal(result, total(group, given))


@over_groups
def test_operations_of_all_kinds_are_on_their_way_together(group: Group) -> None:
    given, root = spec((12, 2)), group.size - 1
    calls = [
        {"call": "allreduce", "array": given},
        {"call": "allgather", "array": given},
        {"call": "barrier"},
        {"call": "reduce_scatter", "array": given},
        {"call": "broadcast", "array": given, "root": root},
        {"call": "alltoall", "array": given},
        {"call": "gather", "array": given, "root": root},
    ]
    for rank, results in enumerate(group.do("begin", calls=calls, order=[6, 0, 5, 1, 4, 2, 3])):
        assert_equal(results[0], total(group, given))
        assert [one.shape for one in results[1]] == [(12, 2)] * group.size
        assert results[2] is None
        assert len(results[3]) == shares(12, group.size)[rank]
        assert_equal(results[4], made(given, root))
        assert [len(one) for one in results[5]] == [shares(12, group.size)[rank]] * group.size
        assert (results[6] is None) == (rank != root)


@over_real_groups
def test_a_work_is_done_when_the_last_rank_has_come(group: Group) -> None:
    first, *others = group.members
    assert first.do("begin_and_keep", group=group.name, call="allreduce", array=1.0) is False
    with pytest.raises(WorkerError) as error:
        first.do("wait", index=-1, timeout=0.05)
    assert error.value.name == "DeadlineExceeded"
    for member in others:
        member.begin("call", group=group.name, call="allreduce", array=1.0)
    assert decoded(first.do("wait", index=-1)) == group.size
    assert first.do("done")[-1] is True
    assert decoded(first.do("wait", index=-1, timeout=0)) == group.size  # as often as one likes
    for member in others:
        assert decoded(member.result()) == group.size


@over_groups
def test_an_operation_after_one_that_was_begun_waits_for_its_turn(group: Group) -> None:
    for member in group.members:
        member.do("begin_and_keep", group=group.name, call="allreduce", array=spec((100_000,)))
    results = group.call("allreduce", array=spec((10,), seed=2))
    for member, result in zip(group.members, results, strict=True):
        assert_equal(result, total(group, spec((10,), seed=2)))
        assert_equal(decoded(member.do("wait", index=-1)), total(group, spec((100_000,))))


# ---- names ---------------------------------------------------------------------------------------------------------
@over_groups
def test_named_operations_come_in_another_order_on_each_rank(group: Group) -> None:
    specs = {name: spec((index + 1,), seed=index) for index, name in enumerate("abcdef")}
    calls = [{"call": "allreduce", "array": given, "name": name} for name, given in specs.items()]
    each = [{"calls": calls[rank:] + calls[:rank]} for rank in group.ranks]
    for rank, results in enumerate(group.do("begin", each)):
        in_order = results[-rank:] + results[:-rank] if rank else results
        for result, given in zip(in_order, specs.values(), strict=True):
            assert_equal(result, total(group, given))


@over_real_groups
def test_named_operations_do_not_wait_for_unnamed_ones(group: Group) -> None:
    first, *others = group.members
    first.do("begin_and_keep", group=group.name, call="allreduce", array=1.0)
    first.do("begin_and_keep", group=group.name, call="allreduce", array=2.0, name="by name")
    for member in others:
        member.begin("call", group=group.name, call="allreduce", array=2.0, name="by name")
    assert decoded(first.do("wait", index=-1)) == 2 * group.size
    for member in others:
        assert decoded(member.result()) == 2 * group.size
        member.begin("call", group=group.name, call="allreduce", array=1.0)
    assert decoded(first.do("wait", index=-2)) == group.size
    for member in others:
        assert decoded(member.result()) == group.size


@over_groups
def test_a_name_is_used_again_once_it_is_done(group: Group) -> None:
    for value in (1.0, 2.0, 3.0):
        for result in group.call("allreduce", array=value, name="again"):
            assert float(result) == value * group.size


@over_real_groups
def test_a_name_that_is_under_way_is_refused_on_the_spot(group: Group) -> None:
    first, *others = group.members
    first.do("begin_and_keep", group=group.name, call="allreduce", array=1.0, name="twice")
    with pytest.raises(WorkerError, match="'twice'") as error:
        first.do("call", group=group.name, call="allreduce", array=1.0, name="twice")
    assert error.value.name == "ConfigError"
    for member in others:
        member.begin("call", group=group.name, call="allreduce", array=1.0, name="twice")
    assert decoded(first.do("wait", index=-1)) == group.size  # and the first one goes on
    for member in others:
        member.result()


# ---- threads -------------------------------------------------------------------------------------------------------
@over_pairs_and_fours
def test_threads_find_their_counterparts_by_name(group: Group) -> None:
    count = 4
    threads = [
        [{"call": "allreduce", "array": spec((50 * thread + 1,), seed=step), "name": f"{thread}"} for step in range(5)]
        for thread in range(count)
    ]
    for results in group.do("threads", calls=threads):
        for thread, mine in enumerate(results):
            for step, result in enumerate(mine):
                assert_equal(result, total(group, spec((50 * thread + 1,), seed=step)))


@over_pairs_and_fours
def test_a_thread_may_send_while_another_reduces(group: Group) -> None:
    last = group.size - 1
    sends = [{"call": "send", "array": spec((30_000,), seed=step), "to": last} for step in range(5)]
    receives = [{"call": "recv", "out": spec((30_000,), seed=9), "source": 0} for _ in range(5)]
    sums = [{"call": "allreduce", "array": spec((30_000,), seed=step)} for step in range(5)]
    each: list[dict[str, Any]] = [{"calls": [sums]} for _ in group.ranks]
    each[0], each[last] = {"calls": [sums, sends]}, {"calls": [sums, receives]}
    results = group.do("threads", each)
    for own in results:
        for step, result in enumerate(own[0]):
            assert_equal(result, total(group, spec((30_000,), seed=step)))
    for step, result in enumerate(results[last][1]):
        assert_equal(result, made(spec((30_000,), seed=step), 0))


# ---- ranks that have nothing left ----------------------------------------------------------------------------------
@over_real_groups
def test_who_has_joined_contributes_nothing_and_all_hear_who_was_last(group: Group) -> None:
    # Rank r does so many steps: the lower ranks run out first, so that the highest joins last.
    for rank, member in enumerate(group.members):
        steps = [{"call": "allreduce", "array": 1.0, "op": "sum"}, {"call": "allreduce", "array": 3.0, "op": "average"}]
        member.begin("calls", group=group.name, calls=[*steps * (rank + 1), {"call": "join"}])
    for rank, results in enumerate(group.outcomes()):
        *steps_done, last = results
        assert last == group.size - 1
        for step in range(rank + 1):
            assert float(steps_done[2 * step]) == group.size - step  # ranks below `step` have joined
            assert float(steps_done[2 * step + 1]) == 3.0
    for result in group.call("allreduce", array=1.0):  # all are back
        assert float(result) == group.size


@over_real_groups
def test_who_has_joined_brings_no_rows(group: Group) -> None:
    first, *others = group.members
    first.begin("call", group=group.name, call="join")
    for rank, member in enumerate(others, 1):
        member.begin("calls", group=group.name, calls=[
            {"call": "allgather", "array": spec((rank, 2))},
            {"call": "allreduce", "array": spec((4,)), "name": "named as well"},
            {"call": "join"},
        ])  # fmt: skip
    first.result()
    for member in others:
        gathered, named, _ = decoded(member.result())
        assert [len(one) for one in gathered] == [0, *range(1, group.size)]
        assert_equal(named, reduced([made(spec((4,)), rank) for rank in range(1, group.size)], "sum", "float32"))


# ---- the same bits -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_have_the_same_bits_over_both_transports_and_every_time(
    member_pool: list[MemberPool], size: int, dtype: str
) -> None:
    seen = set()
    given = spec((3001,), dtype, low=-30_000, high=30_001)
    for transport in TRANSPORTS:
        group = member_pool[0].groups[transport, size]
        for _ in range(3):
            for result in group.call("allreduce", array=given, op="average", prescale=1 / 3, postscale=0.7):
                seen.add(result.tobytes())
            parts = group.call("reduce_scatter", array=given, op="average", prescale=1 / 3, postscale=0.7)
            seen.add(b"".join(part.tobytes() for part in parts))
    assert len(seen) == 1


# ---- groups of some ranks ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [(t, s) for t, s in GROUPS if s == 4], ids=TRANSPORTS, indirect=True)
def test_groups_of_some_ranks_are_made_and_removed(group: Group) -> None:
    for _ in range(2):  # the same ranks again, once their group is gone
        made_of = group.do("part", [{"group": "part", "of": group.name, "ranks": [2, 0]} for _ in group.ranks])
        transport = group.name.partition("-")[0]
        assert made_of == [[1, 2, transport], None, [0, 2, transport], None]
        part = Group([group.members[2], group.members[0]], "part")
        for rank, results in enumerate(zip(part.call("allgather", array=spec((2,))), part.ranks, strict=True)):
            assert [one.tolist() for one in results[0]] == [made(spec((2,)), own).tolist() for own in part.ranks]
            assert results[1] == rank
        for result in group.call("allreduce", array=1.0):  # beside it
            assert float(result) == 4
        part.do("leave")


@pytest.mark.parametrize("group", [(t, s) for t, s in GROUPS if s == 4], ids=TRANSPORTS, indirect=True)
def test_two_groups_work_side_by_side(group: Group) -> None:
    group.do("part", [{"group": f"half{r % 2}", "of": group.name, "ranks": [r % 2, r % 2 + 2]} for r in group.ranks])
    halves = [Group(group.members[half::2], f"half{half}") for half in (0, 1)]
    for half in halves:
        for member in half.members:
            member.begin("call", group=half.name, call="allreduce", array=spec((70_000,)))
    for half in halves:
        for result in half.results():
            assert_equal(result, total(half, spec((70_000,))))
        half.do("leave")


# ---- several groups of one coordinator, one after another ----------------------------------------------------------
@over_transports
def test_a_group_of_the_same_name_forms_again(start_members: Callable[[int], list[Worker]], transport: str) -> None:
    host, *members = start_members(3)
    address = host.do("host", address="tcp://127.0.0.1:0")
    for value in (1.0, 2.0, 3.0):
        group = enter(members, "world", address, transport)
        assert [float(result) for result in group.call("allreduce", array=value)] == [2 * value] * 2
        group.do("leave")


@over_transports
def test_rank_0_may_leave_before_the_others_have_read_its_part(
    start_members: Callable[[int], list[Worker]], transport: str, tmp_path: Path
) -> None:
    host, *members = start_members(4)
    group = enter(members, "world", host.do("host", address="tcp://127.0.0.1:0"), transport)
    given = spec((500_000,))
    first, *others = group.members
    first.begin("call", group=group.name, call="broadcast", array=given, mark=str(tmp_path / "mark"))
    wait_until((tmp_path / "mark").exists, "rank 0 begins")
    for member in others:
        member.begin("call", group=group.name, call="broadcast", array=given)
    assert_equal(decoded(first.result()), made(given, 0))
    first.do("leave", group=group.name)
    for member in others:
        assert_equal(decoded(member.result()), made(given, 0))
        member.do("leave", group=group.name)
