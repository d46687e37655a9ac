"""Values in fewer bytes: what arrives, what is kept for the next push, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worker_processes import SEMANTICS_AND_SHARDS, serve

import distnet

CHUNK = 16 * 1024
SIZES = (5, 2 * CHUNK + 7, 300)
LOSSY = ("bfloat16", "float16", "int8", "topk:0.1")
BYTES_A_VALUE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.02, "topk:0.1": 0.61}


def random_gradient(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(size).astype(np.float32) for size in SIZES]


def zeros() -> list[np.ndarray]:
    return [np.zeros(size, np.float32) for size in SIZES]


@pytest.mark.parametrize(("semantics", "shards"), SEMANTICS_AND_SHARDS)
@pytest.mark.parametrize("push_format", distnet.FORMATS)
def test_values_that_a_format_holds_exactly_arrive_exactly(semantics: str, shards: int, push_format: str) -> None:
    gradient = [np.zeros(size, np.float32) for size in SIZES]
    gradient[1][::CHUNK] = -127.0  # with one such value a group, int8's steps are whole numbers, and topk sends it
    with serve(zeros(), semantics, "tcp", shards, push_format=push_format) as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        for _ in range(3):
            client.push_pull(gradient)
        client.close()
        for array, one in zip(server.parameters(), gradient, strict=True):
            np.testing.assert_array_equal(array, -3.0 * one)


@pytest.mark.parametrize("push_format", LOSSY)
def test_what_a_push_leaves_unsent_goes_along_with_the_next(push_format: str) -> None:
    with serve(zeros(), "async-apply", "tcp", push_format=push_format) as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        pushed = zeros()
        for seed in range(5):
            gradient = random_gradient(seed)
            client.push_pull(gradient)
            pushed = [total + one for total, one in zip(pushed, gradient, strict=True)]
        unsent = client.unsent()
        assert unsent is not None
        assert any(np.any(array) for array in unsent)
        for array, total, left in zip(client.pull(), pushed, unsent, strict=True):
            np.testing.assert_allclose(-np.asarray(array), total - left, atol=1e-4)
        client.close()


def test_a_worker_goes_on_with_what_an_earlier_one_left_unsent() -> None:
    with serve(zeros(), "async-apply", "tcp", push_format="topk:0.1") as server:
        first = distnet.connect(server.address, rank=0, transport="tcp")
        first.push(random_gradient(0))
        left = first.unsent()
        assert left is not None
        first.close()
        second = distnet.connect(server.address, rank=0, transport="tcp")
        with pytest.raises(distnet.NonFiniteGradient, match="nothing was restored"):
            second.restore_unsent([np.full(size, np.nan, np.float32) for size in SIZES])
        second.restore_unsent(left)
        second.push(zeros())
        after = second.unsent()
        assert after is not None
        for array, gradient, rest in zip(second.pull(), random_gradient(0), after, strict=True):
            np.testing.assert_allclose(-np.asarray(array), gradient - rest, atol=1e-5)
        second.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_nothing_is_left_unsent_where_gradients_travel_as_they_are(transport: str) -> None:
    push_format = "int8" if transport == "shm" else "float32"
    with serve(zeros(), "async-apply", transport, push_format=push_format) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        client.push(random_gradient(0))
        assert client.unsent() is None
        with pytest.raises(distnet.ConfigError, match="unsent"):
            client.restore_unsent(zeros())
        for array, gradient in zip(client.pull(), random_gradient(0), strict=True):
            np.testing.assert_array_equal(-np.asarray(array), gradient)
        client.close()


@pytest.mark.parametrize("push_format", distnet.FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_gradient_that_is_not_finite_is_refused_and_leaves_no_trace(
    push_format: str, bad: float, shards: int
) -> None:
    with serve(zeros(), "async-apply", "tcp", shards, push_format=push_format) as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        client.push(random_gradient(0))
        before, unsent = [array.copy() for array in client.pull()], client.unsent()
        spoilt = random_gradient(1)
        spoilt[1][-1] = bad
        with pytest.raises(distnet.NonFiniteGradient):
            client.push(spoilt)
        for array, old in zip(client.pull(), before, strict=True):
            np.testing.assert_array_equal(array, old)
        if unsent is not None:
            for left, left_before in zip(client.unsent() or [], unsent, strict=True):
                np.testing.assert_array_equal(left, left_before)
        client.push_pull(random_gradient(2))
        client.close()
        assert server.stats()["refused"] == 1


def test_a_value_too_large_for_float16_is_refused_not_turned_into_infinity() -> None:
    with serve(zeros(), "async-apply", "tcp", push_format="float16") as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        gradient = zeros()
        gradient[0][0] = 70_000.0
        with pytest.raises(distnet.NonFiniteGradient, match="too large"):
            client.push(gradient)
        client.close()


@pytest.mark.parametrize(("semantics", "shards"), SEMANTICS_AND_SHARDS)
@pytest.mark.parametrize("pull_format", ["float32", "bfloat16", "float16", "int8"])
def test_pulls_are_the_rounded_parameters_and_the_servers_stay_whole(
    semantics: str, shards: int, pull_format: str
) -> None:
    initial = random_gradient(7)
    with serve(initial, semantics, "tcp", shards, pull_format=pull_format) as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        calls: tuple[Callable[[], Any], ...] = (client.pull, lambda: client.push_pull(zeros()))
        for call in calls:
            for array, exact in zip(call(), initial, strict=True):
                tolerance = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 1 / 127}[pull_format]
                assert np.max(np.abs(array - exact)) <= tolerance * np.max(np.abs(exact))
        local = distnet.connect(server.address, transport="shm")
        for whole, exact in zip(local.pull(), initial, strict=True):
            np.testing.assert_array_equal(whole, exact)
        local.close()
        client.close()


@pytest.mark.parametrize("pull_format", ["float32", "bfloat16", "float16", "int8"])
def test_parameters_that_have_diverged_arrive_as_such(pull_format: str) -> None:
    initial = zeros()
    initial[1][3], initial[1][CHUNK] = np.nan, np.inf
    with serve(initial, "async-lockfree", "tcp", pull_format=pull_format) as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        pulled = client.pull()[1]
        assert not np.isfinite(pulled[3])
        assert not np.isfinite(pulled[CHUNK])
        client.close()


@pytest.mark.parametrize("push_format", distnet.FORMATS)
def test_fewer_bytes_is_what_travels(push_format: str) -> None:
    parameters = [np.zeros(8 * CHUNK, np.float32)]
    with serve(parameters, "async-apply", "tcp", push_format=push_format, ema_decay=0.9) as server:
        client = distnet.connect(server.address, rank=0, transport="tcp")
        client.push([np.ones(8 * CHUNK, np.float32)])
        received = server.stats()["bytes_received"]
        name = "topk:0.1" if push_format == "topk" else push_format
        most = BYTES_A_VALUE[name] if push_format != "topk" else 0.07
        assert received <= most * 8 * CHUNK + 200
        client.close()


def test_a_round_joins_gradients_of_several_forms() -> None:
    with serve(zeros(), "sync", "tcp", workers=2, push_format="bfloat16", optimizer=distnet.SGD(1.0)) as server:
        near = distnet.connect(server.address, rank=0, transport="shm")
        far = distnet.connect(server.address, rank=1, transport="tcp")
        begun = near.begin_push_pull([np.full(size, 3.0, np.float32) for size in SIZES])
        far.push_pull([np.full(size, 5.0, np.float32) for size in SIZES])
        for array in begun.wait():
            np.testing.assert_array_equal(array, -4.0)
        near.close()
        far.close()


@pytest.mark.parametrize(
    ("what", "text"),
    [("push_format", "float8"), ("push_format", "topk:0"), ("push_format", "topk:x"), ("push_format", "int8:2"),
     ("pull_format", "topk"), ("pull_format", "half"), ("push_format", "topk:1.5")],
)  # fmt: skip
def test_a_format_that_cannot_be_is_refused_by_name(what: str, text: str) -> None:
    formats: dict[str, Any] = {what: text}
    with pytest.raises(distnet.ConfigError, match=what):
        distnet.ParameterServer([np.zeros(3, np.float32)], **formats)
