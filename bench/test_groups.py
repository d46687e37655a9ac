"""Every group under pytest-benchmark: ``pytest bench -k rivals-alexnet`` runs one.

Numbers in brackets are ratios to the fastest of the group. Here contenders run one after another;
``python bench/run.py`` runs them in turns and takes ratios between neighbours. Every answer is checked.
"""

from __future__ import annotations

from typing import Any

import pytest
from groups import GROUPS, Entry, Group

pytestmark = pytest.mark.timeout(600)  # frameworks start slowly on a busy machine

WARM_UP_CALLS = 3
ENTRIES = [pytest.param(group, entry, id=f"{group.name}-{entry.name}") for group in GROUPS for entry in group.entries]


class MeasuredSeconds:
    """A clock that stands still but for what contenders measured of themselves, in whichever process they run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = MeasuredSeconds()


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("group", "entry"), ENTRIES)
def test_group(benchmark: Any, group: Group, entry: Entry) -> None:
    if entry.missing:
        pytest.skip(f"{entry.name} needs {entry.missing}")
    benchmark.group = group.name
    with entry.make() as contender:

        def call() -> None:
            CLOCK.seconds += sum(contender.run(1))

        contender.run(WARM_UP_CALLS)
        benchmark.pedantic(call, rounds=group.rounds, warmup_rounds=0)
        contender.check(WARM_UP_CALLS + group.rounds)
