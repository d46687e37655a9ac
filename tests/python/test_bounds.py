"""Each bound is one number: in the engine, in the arguments of a server, and in the settings of a job."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distnet
from distnet._private import bounds
from distnet.checkpoint import CheckpointFolder
from distnet.settings.job import JobSettings

CSRC = Path(__file__).parents[2] / "csrc"
MODEL = [np.zeros(5, np.float32)]

ENGINES_BOUNDS = [
    (bounds.most_workers("one"), "sessions/session_table.h", "kMaxSessions"),
    (bounds.most_workers("all"), "wire/protocol.h", "kMaxSavedRanks"),
    (bounds.MOST_IN_FLIGHT, "wire/protocol.h", "kMaxInFlight"),
    (bounds.MOST_SAVED_BYTES, "wire/protocol.h", "kMaxSavedBytes"),
    (bounds.MOST_NAME_BYTES, "wire/manifest.cc", "kMaxNameBytes"),
    (bounds.MOST_DIMENSIONS, "wire/manifest.cc", "kMaxDimensions"),
    (bounds.MOST_FLOATS, "wire/manifest.cc", "kMaxFloats"),
    (bounds.MOST_MEMBERS, "group/operation.h", "kMostRanks"),
    (bounds.MOST_DIMENSIONS_IN_A_GROUP, "group/operation.h", "kMostDimensions"),
    (bounds.MOST_GROUP_NAME_BYTES, "wire/group_messages.h", "kMaxGroupNameBytes"),
    (bounds.ENDED_SESSIONS, "server/live_sessions.cc", "kMostEnded"),
]


def engines(file: str, name: str) -> int:
    """Return a constant of the engine: a number, or one that is shifted left."""
    found = re.search(rf"\b{name} = (?:std::\w+\{{)?(\d+)U?\}}?(?: << (\d+)U)?;", (CSRC / file).read_text())
    assert found, f"{name} is no plain number in {file}"
    return int(found[1]) << int(found[2] or 0)


@pytest.mark.parametrize(("here", "file", "name"), ENGINES_BOUNDS, ids=[row[2] for row in ENGINES_BOUNDS])
def test_a_bound_is_that_of_the_engine(here: int, file: str, name: str) -> None:
    assert here == engines(file, name)


@pytest.mark.parametrize("joins", ["one", "all"])
def test_a_server_and_a_job_take_as_many_workers(joins: str) -> None:
    most = bounds.most_workers(joins)
    name = "sync" if joins == "all" else "async-apply"
    assert JobSettings(workers=most, semantics=name).workers == most
    assert distnet.ParameterServer(MODEL, workers=most, semantics=name).workers == most
    for make in (
        lambda: JobSettings(workers=most + 1, semantics=name),
        lambda: distnet.ParameterServer(MODEL, workers=most + 1, semantics=name),
    ):
        with pytest.raises(
            distnet.ConfigError, match=f"workers is {most + 1}; expected a whole number from 1 to {most}"
        ):
            make()


SAME_BOUNDS: list[tuple[int, list[Callable[[Any], object]]]] = [
    (bounds.MOST_SERVERS, [lambda n: JobSettings(servers=n), lambda n: distnet.ParameterServer(MODEL, servers=n)]),
    (bounds.MOST_IN_FLIGHT, [lambda n: JobSettings(max_inflight=n), lambda n: distnet.Semantics(max_inflight=n)]),
    (
        bounds.MOST_KEPT_CHECKPOINTS,
        [lambda n: JobSettings(keep_checkpoints=n), lambda n: CheckpointFolder("checkpoints", keep=n)],
    ),
]


@pytest.mark.parametrize(("most", "places"), SAME_BOUNDS, ids=["servers", "max_inflight", "keep_checkpoints"])
def test_a_number_is_bounded_alike_wherever_it_is_said(most: int, places: list[Callable[[Any], object]]) -> None:
    for make in places:
        make(1)
        make(most)
        for wrong in (0, most + 1, True, 1.0, "1"):
            with pytest.raises(distnet.ConfigError, match=rf"is {wrong!r}; expected a whole number from 1 to {most}"):
                make(wrong)


ABOVE_ZERO: dict[str, Callable[[Any], object]] = {
    "a peer's silence": lambda s: distnet.connect("tcp://localhost:1", 0, timeout=s),
    "a round": lambda s: distnet.Semantics(round_timeout=s),
    "a job's round": lambda s: JobSettings(round_timeout=s),
}
FROM_ZERO: dict[str, Callable[[Any], object]] = {
    "a server that is not there": lambda s: distnet.connect("tcp://localhost:1", 0, connect_timeout=s),
    "a worker that is away": lambda s: distnet.ParameterServer(MODEL, reconnect_timeout=s),
    "a job's worker that is away": lambda s: JobSettings(reconnect_timeout=s),
}


@pytest.mark.parametrize("wait", [*ABOVE_ZERO, *FROM_ZERO])
@pytest.mark.parametrize("seconds", [-1.0, bounds.LONGEST_SECONDS, float("inf"), float("nan"), "1", True])
def test_every_wait_has_the_same_bounds(wait: str, seconds: Any) -> None:
    least = "above 0" if wait in ABOVE_ZERO else "0 or above"
    with pytest.raises(distnet.ConfigError, match=f"timeout is .*; expected seconds, {least} and below 1,000,000,000"):
        (ABOVE_ZERO | FROM_ZERO)[wait](seconds)


@pytest.mark.parametrize("wait", ABOVE_ZERO)
def test_a_wait_of_no_time_is_refused(wait: str) -> None:
    with pytest.raises(distnet.ConfigError, match="timeout is 0; expected seconds, above 0"):
        ABOVE_ZERO[wait](0)
