"""The operations of a process group against NumPy, between real processes, over both transports and four sizes."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from group_arrays import (
    DTYPES,
    FLOATS,
    INTEGERS,
    OPS,
    assert_equal,
    cut,
    decoded,
    made,
    narrowed,
    reduced,
    shares,
    spec,
)
from group_members import Group, over_groups, over_pairs_and_fours, over_real_groups

over_dtypes = pytest.mark.parametrize("dtype", DTYPES)
UNEVEN = [3, 0, 5, 1]  # rows of each rank
# Lengths beside those at which an engine may change its way: nothing, less than a group has members, small, large.
LENGTHS = [0, 1, 2, 3, 10, 1000, 8191, 65_536, 300_001]


# ---- reductions ----------------------------------------------------------------------------------------------------
@over_groups
@over_dtypes
def test_allreduce_is_numpys(group: Group, dtype: str) -> None:
    for op in OPS:
        if dtype == "bool" and op == "average":
            continue
        given = spec((3, 5), dtype)
        expected = reduced(group.arrays(given), op, dtype)
        for result in group.call("allreduce", array=given, op=op):
            assert_equal(result, expected)


@over_groups
@pytest.mark.parametrize("length", LENGTHS)
def test_allreduce_takes_any_length(group: Group, length: int) -> None:
    given = spec((length,))
    for result in group.call("allreduce", array=given):
        assert_equal(result, reduced(group.arrays(given), "sum", "float32"))


@over_pairs_and_fours
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_allreduce_scales_before_and_after(group: Group, dtype: str) -> None:
    given = spec((40,), dtype)
    for prescale, postscale in ((0.5, 1.0), (1.0, 4.0), (2.0, 0.25)):
        expected = reduced(group.arrays(given), "sum", dtype, prescale, postscale)
        for result in group.call("allreduce", array=given, prescale=prescale, postscale=postscale):
            assert_equal(result, expected)


@over_pairs_and_fours
def test_sums_of_integers_wrap_and_averages_do_not(group: Group) -> None:
    given = spec((64,), "uint8", high=256)
    sums = group.call("allreduce", array=given)
    averages = group.call("allreduce", array=given, op="average")
    for total, average in zip(sums, averages, strict=True):
        assert_equal(total, reduced(group.arrays(given), "sum", "uint8"))
        assert_equal(average, reduced(group.arrays(given), "average", "uint8"))


@over_pairs_and_fours
def test_halves_are_rounded_once(group: Group) -> None:
    for dtype in ("float16", "bfloat16"):
        given = spec((500,), dtype, low=-1000, high=1001)
        expected = reduced(group.arrays(given), "average", dtype)
        for result in group.call("allreduce", array=given, op="average"):
            assert_equal(result, expected)


@over_groups
def test_a_result_goes_where_it_was_asked_for(group: Group) -> None:
    given = spec((7, 3))
    for result in group.call("allreduce", array=given, out="array"):
        assert_equal(result, reduced(group.arrays(given), "sum", "float32"))
    for result in group.call("allreduce", array=given, out=spec((7, 3), seed=2)):
        assert_equal(result, reduced(group.arrays(given), "sum", "float32"))


@over_groups
def test_scalars_and_python_numbers_are_arrays_without_dimensions(group: Group) -> None:
    for result in group.call("allreduce", array=2.5):
        assert_equal(result, np.array(2.5 * group.size))
    for result in group.call("allgather", array=7):
        assert [int(one) for one in result] == [7] * group.size
        assert [one.shape for one in result] == [()] * group.size


@over_groups
def test_reduce_scatter_hands_each_rank_its_rows(group: Group) -> None:
    for dtype in DTYPES:
        for shape in ((8, 3), (5, 2), (3,), (0, 4)):
            given = spec(shape, dtype)
            expected = cut(reduced(group.arrays(given), "sum", dtype), shares(shape[0], group.size))
            for result, own in zip(group.call("reduce_scatter", array=given), expected, strict=True):
                assert_equal(result, own)


@over_groups
def test_reduce_scatter_takes_uneven_splits(group: Group) -> None:
    splits = UNEVEN[: group.size]
    given = spec((sum(splits), 50))
    for op in OPS:
        expected = cut(reduced(group.arrays(given), op, "float32"), splits)
        for result, own in zip(group.call("reduce_scatter", array=given, op=op, splits=splits), expected, strict=True):
            assert_equal(result, own)


# ---- from each to all ----------------------------------------------------------------------------------------------
@over_groups
def test_allgather_hands_all_to_all(group: Group) -> None:
    for dtype in DTYPES:
        given = spec((4, 3), dtype)
        for result in group.call("allgather", array=given):
            for own, expected in zip(result, group.arrays(given), strict=True):
                assert_equal(own, expected)


@over_groups
def test_allgather_puts_all_rows_where_it_was_asked_to(group: Group) -> None:
    each = [{"array": spec((rows, 3))} for rows in UNEVEN[: group.size]]
    out = spec((sum(UNEVEN[: group.size]), 3), seed=2)
    for result in group.call("allgather", each, out=out):
        for rank, own in enumerate(result):
            assert_equal(own, made(each[rank]["array"], rank))


@over_groups
@pytest.mark.parametrize("width", [1, 2000, 70_000])
def test_allgather_takes_another_number_of_rows_of_each_rank(group: Group, width: int) -> None:
    each = [{"array": spec((rows, width))} for rows in UNEVEN[: group.size]]
    expected = [made(own["array"], rank) for rank, own in enumerate(each)]
    for result in group.call("allgather", each):
        for one, array in zip(result, expected, strict=True):
            assert_equal(one, array)


@over_groups
def test_alltoall_hands_each_rank_its_rows_of_every_rank(group: Group) -> None:
    for dtype in DTYPES:
        given = spec((group.size * 2 + 1, 3), dtype)
        parts = [cut(array, shares(len(array), group.size)) for array in group.arrays(given)]
        for rank, result in enumerate(group.call("alltoall", array=given)):
            for source in group.ranks:
                assert_equal(result[source], parts[source][rank])


@over_groups
@pytest.mark.parametrize("width", [1, 40_000])
def test_alltoall_takes_uneven_splits(group: Group, width: int) -> None:
    splits = [[(3 * rank + to) % 5 for to in group.ranks] for rank in group.ranks]
    arrays = [spec((sum(own), width)) for own in splits]
    each = [{"array": array, "splits": own} for array, own in zip(arrays, splits, strict=True)]
    parts = [cut(made(array, rank), splits[rank]) for rank, array in enumerate(arrays)]
    for rank, result in enumerate(group.call("alltoall", each)):
        for source in group.ranks:
            assert_equal(result[source], parts[source][rank])


# ---- from and to one rank ------------------------------------------------------------------------------------------
@over_groups
def test_broadcast_hands_one_array_to_all(group: Group) -> None:
    for dtype in DTYPES:
        given = spec((6, 2), dtype)
        for root in group.ranks:
            for result in group.call("broadcast", array=given, root=root, out="array"):
                assert_equal(result, made(given, root))


@over_groups
@pytest.mark.parametrize("length", LENGTHS)
def test_broadcast_takes_what_comes_where_no_array_is_given(group: Group, length: int) -> None:
    root = group.size - 1
    given = spec((length,), "int16")
    each = [{"array": given if rank == root else None} for rank in group.ranks]
    for result in group.call("broadcast", each, root=root):
        assert_equal(result, made(given, root))


@over_groups
def test_gather_hands_all_arrays_to_one_rank(group: Group) -> None:
    for dtype in DTYPES:
        each = [{"array": spec((rows, 2), dtype)} for rows in UNEVEN[: group.size]]
        for root in group.ranks:
            results = group.call("gather", each, root=root)
            assert [result is None for result in results] == [rank != root for rank in group.ranks]
            for rank, own in enumerate(results[root]):
                assert_equal(own, made(each[rank]["array"], rank))


@over_groups
def test_scatter_hands_each_rank_its_rows(group: Group) -> None:
    for dtype in DTYPES:
        for root in group.ranks:
            given = spec((9, 2), dtype)
            each: list[dict[str, Any]] = [{"array": given if rank == root else None} for rank in group.ranks]
            for rank, result in enumerate(group.call("scatter", each, root=root)):
                assert_equal(result, cut(made(given, root), shares(9, group.size))[rank])


@over_groups
def test_scatter_takes_uneven_splits_and_places(group: Group) -> None:
    root, splits = group.size - 1, UNEVEN[: group.size]
    given = spec((sum(splits), 30_000))
    each: list[dict[str, Any]] = [{"array": None, "out": spec((rows, 30_000))} for rows in splits]
    each[root] = {"array": given, "splits": splits}
    for rank, result in enumerate(group.call("scatter", each, root=root)):
        assert_equal(result, cut(made(given, root), splits)[rank])


# ---- messages ------------------------------------------------------------------------------------------------------
@over_real_groups
def test_a_message_arrives_as_it_was_sent(group: Group) -> None:
    for dtype in DTYPES:
        last = group.size - 1
        given = spec((5, 2), dtype)
        group.members[0].begin("call", group=group.name, call="send", array=given, to=last)
        received = group.members[last].do(
            "call", group=group.name, call="recv", out=spec((5, 2), dtype, seed=9), source=0
        )
        assert group.members[0].result() is None
        assert_equal(decoded(received), made(given, 0))


@over_real_groups
def test_messages_around_a_ring_pass_each_other(group: Group) -> None:
    for length in (1, 200_000):
        calls = [
            [
                {"call": "send", "array": spec((length,)), "to": (rank + 1) % group.size},
                {"call": "recv", "out": spec((length,), seed=2), "source": (rank - 1) % group.size},
            ]
            for rank in group.ranks
        ]
        results = group.do("begin", [{"calls": own} for own in calls])
        for rank, (sent, received) in enumerate(results):
            assert sent is None
            assert_equal(received, made(spec((length,)), (rank - 1) % group.size))


@over_real_groups
def test_messages_are_told_apart_by_their_tags(group: Group) -> None:
    sent = [{"call": "send", "array": spec((3,), seed=tag), "to": 1, "tag": tag} for tag in (1, 2, 3)]
    received = [{"call": "recv", "out": spec((3,), seed=9), "source": 0, "tag": tag} for tag in (3, 1, 2)]
    group.members[0].begin("begin", group=group.name, calls=sent)
    results = group.members[1].do("begin", group=group.name, calls=received)
    group.members[0].result()
    for result, tag in zip(decoded(results), (3, 1, 2), strict=True):
        assert_equal(result, made(spec((3,), seed=tag), 0))


@over_real_groups
def test_messages_of_one_tag_arrive_in_order(group: Group) -> None:
    seeds = range(1, 6)
    group.members[0].begin("begin", group=group.name, calls=[
        {"call": "send", "array": spec((3,), seed=seed), "to": 1, "tag": 7} for seed in seeds
    ])  # fmt: skip
    results = group.members[1].do("begin", group=group.name, calls=[
        {"call": "recv", "out": spec((3,), seed=9), "source": 0, "tag": 7} for _ in seeds
    ])  # fmt: skip
    group.members[0].result()
    for result, seed in zip(decoded(results), seeds, strict=True):
        assert_equal(result, made(spec((3,), seed=seed), 0))


# ---- bfloat16 of ml_dtypes -----------------------------------------------------------------------------------------
@over_pairs_and_fours
@pytest.mark.skipif(importlib.util.find_spec("ml_dtypes") is None, reason="ml_dtypes is not installed")
def test_arrays_of_ml_dtypes_come_back_as_such(group: Group) -> None:
    given = spec((20,), "bfloat16")
    for call in ("allreduce", "broadcast"):
        for member in group.members:
            member.begin("call", group=group.name, call=call, array=given, ml_dtypes=True)
        raw = [member.result() for member in group.members]
        assert [result["dtype"] for result in raw] == ["bfloat16"] * group.size
        whole = reduced(group.arrays(given), "sum", "bfloat16") if call == "allreduce" else made(given, 0)
        assert [bytes(decoded(result)) for result in raw] == [whole.tobytes()] * group.size


# ---- values that are not numbers -----------------------------------------------------------------------------------
@over_pairs_and_fours
def test_what_is_no_number_spreads(group: Group) -> None:
    each = [{"array": float("nan") if rank == 1 else 1.0} for rank in group.ranks]
    for op in ("sum", "average", "min", "max", "product"):
        assert [np.isnan(result) for result in group.call("allreduce", each, op=op)] == [True] * group.size
    each = [{"array": float("inf") if rank == 1 else 1.0} for rank in group.ranks]
    assert [float(result) for result in group.call("allreduce", each)] == [float("inf")] * group.size


def test_the_reference_rounds_as_numpy_does() -> None:
    values = np.array([1.0, -2.5, 3.14159, 60_001.0], np.float32)
    assert_equal(narrowed(values, "float16"), values.astype(np.float16))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert_equal(narrowed(values, "bfloat16"), values.astype(ml_dtypes.bfloat16).view(np.uint16))
