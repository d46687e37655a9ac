"""Random arrays through random groups: the result is NumPy's."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
from group_arrays import DTYPES, OPS, assert_equal, cut, made, reduced, spec
from group_members import GROUPS, MemberPool
from hypothesis import HealthCheck, given, settings

bounded = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

shapes = st.lists(st.integers(0, 6), max_size=8).filter(lambda shape: math.prod(shape) < 10_000) | st.integers(
    1, 200_000
).map(lambda length: [length])
rows = st.lists(st.integers(0, 2000), min_size=4, max_size=4)
rests = st.lists(st.integers(0, 5), max_size=3)
groups = st.sampled_from(GROUPS)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**16)
scales = st.sampled_from([1.0, 0.5, 2.0, -1.0])


@bounded
@given(key=groups, shape=shapes, dtype=dtypes, op=st.sampled_from(OPS), seed=seeds, prescale=scales, postscale=scales)
def test_allreduce_is_numpys(
    member_pool: list[MemberPool],
    key: Any,
    shape: list[int],
    dtype: str,
    op: str,
    seed: int,
    prescale: float,
    postscale: float,
) -> None:
    group = member_pool[0].groups[key]
    if dtype == "bool":
        op, prescale, postscale = "max" if op == "average" else op, 1.0, 1.0
    if dtype == "uint8":
        prescale, postscale = abs(prescale), abs(postscale)
    array = spec(shape, dtype, seed=seed, low=-2, high=3)
    expected = reduced(group.arrays(array), op, dtype, prescale, postscale)
    for result in group.call("allreduce", array=array, op=op, prescale=prescale, postscale=postscale):
        assert_equal(result, expected)


@bounded
@given(key=groups, counts=rows, rest=rests, dtype=dtypes, seed=seeds)
def test_allgather_is_numpys(
    member_pool: list[MemberPool], key: Any, counts: list[int], rest: list[int], dtype: str, seed: int
) -> None:
    group = member_pool[0].groups[key]
    each = [{"array": spec([counts[rank], *rest], dtype, seed=seed)} for rank in group.ranks]
    for result in group.call("allgather", each):
        for rank, own in enumerate(result):
            assert_equal(own, made(each[rank]["array"], rank))


@bounded
@given(key=groups, table=st.lists(rows, min_size=4, max_size=4), rest=rests, dtype=dtypes, seed=seeds)
def test_alltoall_is_numpys(
    member_pool: list[MemberPool], key: Any, table: list[list[int]], rest: list[int], dtype: str, seed: int
) -> None:
    group = member_pool[0].groups[key]
    splits = [table[rank][: group.size] for rank in group.ranks]
    arrays = [spec([sum(own), *rest], dtype, seed=seed) for own in splits]
    each = [{"array": array, "splits": own} for array, own in zip(arrays, splits, strict=True)]
    parts = [cut(made(array, rank), splits[rank]) for rank, array in enumerate(arrays)]
    for rank, result in enumerate(group.call("alltoall", each)):
        for source in group.ranks:
            assert_equal(result[source], parts[source][rank])
