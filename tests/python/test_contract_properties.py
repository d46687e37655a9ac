"""Random models and pushes through random servers: the result is NumPy's, and arrays come back as they went."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, given, settings
from worker_processes import SEMANTICS_AND_SHARDS, TRANSPORTS, serve

import distnet

shapes = st.lists(
    st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.integers(1, 70_000).map(lambda n: (n,)),
    min_size=1,
    max_size=6,
)


@st.composite
def models(draw: st.DrawFn) -> Any:
    """A list of arrays, or a dict of them."""
    chosen = draw(shapes)
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    arrays = [random.integers(-50, 50, shape).astype(np.float32) for shape in chosen]
    if draw(st.booleans()):
        keys = draw(
            st.lists(
                st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
                min_size=len(arrays),
                max_size=len(arrays),
                unique=True,
            )
        )
        return dict(zip(keys, arrays, strict=True))
    return arrays


@dataclasses.dataclass(frozen=True)
class Case:
    semantics: str
    shards: int
    transport: str


cases = st.builds(
    lambda chosen, more, transport: Case(chosen[0], chosen[1] + more if chosen[1] > 1 else 1, transport),
    st.sampled_from(SEMANTICS_AND_SHARDS),
    st.integers(0, 2),
    st.sampled_from(TRANSPORTS),
)

bounded = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def like(model: Any, arrays: list[np.ndarray]) -> Any:
    return dict(zip(model, arrays, strict=True)) if isinstance(model, dict) else arrays


def arrays_of(model: Any) -> list[np.ndarray]:
    return list(model.values()) if isinstance(model, dict) else list(model)


def assert_same(actual: Any, expected: Any) -> None:
    """Equal in structure, names, shapes, dtypes and every bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
    for one, other in zip(arrays_of(actual), arrays_of(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


@bounded
@given(model=models(), case=cases, pushes=st.lists(st.integers(0, 2**16), max_size=5), data=st.data())
def test_the_parameters_are_what_numpy_says(model: Any, case: Case, pushes: list[int], data: st.DataObject) -> None:
    with serve(model, case.semantics, case.transport, case.shards, optimizer=distnet.SGD(0.5)) as server:
        client = distnet.connect(server.address, rank=0, transport=case.transport)
        assert client.transport == case.transport
        assert_same(client.pull(), model)
        expected = [array.copy() for array in arrays_of(model)]
        for seed in pushes:
            random = np.random.default_rng(seed)
            gradients = [random.integers(-8, 8, array.shape).astype(np.float32) for array in expected]
            expected = [array - np.float32(0.5) * g for array, g in zip(expected, gradients, strict=True)]
            kept = [g.copy() for g in gradients]
            call = data.draw(st.sampled_from(["push", "push_pull", "begin_push_pull"]))
            answer = getattr(client, call)(like(model, gradients))
            if call == "begin_push_pull":
                for g in gradients:
                    g[...] = np.nan  # may be overwritten once the call returns
                answer.wait()
            else:
                assert all(np.array_equal(g, k) for g, k in zip(gradients, kept, strict=True))
        client.close()
        assert_same(server.parameters(), like(model, expected))


@bounded
@given(model=models(), case=cases)
def test_arrays_come_back_as_they_went(model: Any, case: Case) -> None:
    with serve(model, case.semantics, case.transport, case.shards) as server:
        client = distnet.connect(server.address, transport=case.transport)
        assert client.names == ([str(name) for name in model] if isinstance(model, dict) else client.names)
        assert client.shapes == [array.shape for array in arrays_of(model)]
        assert_same(client.pull(), model)
        out = like(model, [np.full(array.shape, np.nan, np.float32) for array in arrays_of(model)])
        returned = client.pull(out=out)
        assert all(one is other for one, other in zip(arrays_of(returned), arrays_of(out), strict=True))
        assert_same(out, model)
        assert_same(client.pull(alias=True), model)
        assert_same(server.parameters(), model)
        client.close()


@bounded
@given(model=models(), case=cases)
def test_any_model_can_be_brought_by_rank_0(model: Any, case: Case) -> None:
    with serve(None, case.semantics, case.transport, case.shards) as server:
        client = distnet.connect(server.address, rank=0, transport=case.transport, parameters=model)
        assert_same(client.pull(), model)
        client.close()
        assert_same(server.parameters(), model)
