"""push_pull of every semantics over every transport beside the machine's limits, in groups by size and transport.

Run with ``pytest bench``; numbers in brackets are ratios to the fastest of the group. Every benchmark
checks its answer: parameters hold exactly what the pushed gradients come to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from distnet.launch.measure import SIZES, Contender, loopback, memory_copy, push_pull, sgd_in_place
from distnet.semantics import SEMANTICS

ROUNDS = {"small": 400, "alexnet": 60, "resnet50": 6}
WARM_UP_ROUNDS = 2
LIMITS = {
    "shm": {"memcpy": memory_copy, "SGD in place": sgd_in_place},
    "tcp": {"bare loopback exchange": loopback},
}


def measure(
    benchmark: Any, contender: contextlib.AbstractContextManager[Contender], *, group: str, rounds: int
) -> None:
    """Time a contender and check its answer."""
    calls = 0
    benchmark.group = group
    with contender as measured:

        def call() -> None:
            nonlocal calls
            calls += 1
            measured.call()

        benchmark.pedantic(call, rounds=rounds, warmup_rounds=WARM_UP_ROUNDS)
        measured.check(calls)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("transport", "limit"), [(transport, name) for transport, limits in LIMITS.items() for name in limits]
)
def test_limit(benchmark: Any, size: str, transport: str, limit: str) -> None:
    make: Callable[..., contextlib.AbstractContextManager[Contender]] = LIMITS[transport][limit]
    measure(benchmark, make(SIZES[size]), group=f"{SIZES[size].name}, {transport}", rounds=ROUNDS[size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transport", LIMITS)
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_push_pull(benchmark: Any, size: str, transport: str, semantics: str) -> None:
    contender = push_pull(SIZES[size], semantics, transport)
    measure(benchmark, contender, group=f"{SIZES[size].name}, {transport}", rounds=ROUNDS[size])
