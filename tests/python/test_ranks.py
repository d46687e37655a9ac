"""What ranks do together beside pushes: they meet at one place, hear at once who does not come, and join arrays."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.frameworks.ranks import Departed, Ranks

WITHIN_S = 60.0
ABORTING = dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="abort")
Part = Callable[[distnet.Client, Ranks], Any]


def together(*parts: Part, semantics: Any = ABORTING) -> list[Any]:
    """Run a part a rank, in threads that stand for processes; return what each returned or raised."""
    with distnet.ParameterServer([np.zeros(2, np.float32)], semantics=semantics, workers=len(parts)) as server:

        def run(rank: int) -> Any:
            client = distnet.connect(server.address, rank=rank)
            ranks = Ranks(client, "a test")
            try:
                result = parts[rank](client, ranks)
            except (distnet.DistNetError, Died) as error:
                ranks.abandon(error)
                client.__exit__(type(error), error, error.__traceback__)
                return error
            ranks.close()
            client.close()
            return result

        with ThreadPoolExecutor(len(parts)) as pool:
            return [each.result(WITHIN_S) for each in [pool.submit(run, rank) for rank in range(len(parts))]]


class Died(Exception):
    """What ends a rank in these tests."""


def die(client: distnet.Client, ranks: Ranks) -> None:
    raise Died


def push(client: distnet.Client, ranks: Ranks) -> None:
    client.push_pull([np.ones(2, np.float32)])


def meets(where: str) -> Part:
    return lambda client, ranks: ranks.meet(where)


def test_all_hear_what_each_says_and_arrays_are_joined() -> None:
    def part(client: distnet.Client, ranks: Ranks) -> Any:
        heard = ranks.meet("a place", name=f"rank {client.rank}" * (client.rank or 0))
        own = np.array([1.0, ranks.rank])
        return heard, ranks.sum(own).tolist(), ranks.average([own])[0].tolist(), ranks.broadcast([own])[0].tolist()

    said = [{"name": ""}, {"name": "rank 1"}, {"name": "rank 2rank 2"}]
    assert together(part, part, part) == [(said, [3.0, 3.0], [1.0, 1.0], [1.0, 0.0])] * 3


def test_one_rank_alone_needs_nobody() -> None:
    def part(client: distnet.Client, ranks: Ranks) -> Any:
        return ranks.meet("a place", steps=3), ranks.sum(np.ones(1)).tolist(), ranks.broadcast([np.ones(1)])

    assert together(part) == [([{"steps": 3}], [1.0], [np.ones(1)])]


def test_ranks_at_different_places_hear_who_is_where() -> None:
    errors = together(meets("the end of epoch 1"), meets("evaluate()"))
    assert [type(error) for error in errors] == [distnet.ConfigError] * 2
    for error in errors:
        assert "rank 0 is at the end of epoch 1; rank 1 is at evaluate(). Call the same on every rank" in str(error)


def test_a_rank_that_others_wait_for_in_a_round_says_so_and_they_hear_of_it() -> None:
    ended, waiting = together(meets("the end of epoch 1"), push)
    assert isinstance(ended, distnet.RoundAborted)
    assert "rank 0 is at the end of epoch 1, and others wait for its push" in str(ended)
    assert "equally many steps" in str(ended)
    assert isinstance(waiting, distnet.RoundAborted)
    assert "rank 0" in str(waiting)  # where it waits, or that it was lost, whichever is heard first


@pytest.mark.parametrize("has_met", [False, True])
def test_a_rank_that_left_in_order_is_named(has_met: bool) -> None:
    left = threading.Event()

    def leave(client: distnet.Client, ranks: Ranks) -> None:
        if has_met:
            ranks.meet("the beginning")
        ranks.close()
        client.close()
        left.set()

    def come_late(client: distnet.Client, ranks: Ranks) -> None:
        if has_met:
            ranks.meet("the beginning")
        assert left.wait(WITHIN_S)
        ranks.meet("evaluate()")

    error, nothing = together(come_late, leave)
    assert nothing is None
    assert isinstance(error, Departed)
    assert "evaluate(), and rank 1 has left the job" in str(error)


@pytest.mark.parametrize("has_met", [False, True])
def test_a_rank_that_dies_is_named_at_once(has_met: bool) -> None:
    both_have_met = threading.Barrier(2)

    def begin_and(then: Part) -> Part:
        def part(client: distnet.Client, ranks: Ranks) -> Any:
            if has_met:
                ranks.meet("the beginning")
                both_have_met.wait(WITHIN_S)
            return then(client, ranks)

        return part

    error, died = together(begin_and(meets("the end of epoch 1")), begin_and(die))
    assert isinstance(died, Died)
    assert isinstance(error, distnet.PeerClosed)
    assert "rank 0 is at the end of epoch 1, and waits for a rank that is lost" in str(error)
    assert "rank 1" in str(error)


def test_a_job_that_goes_on_without_a_lost_rank_leaves_the_others_by_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def part(client: distnet.Client, ranks: Ranks) -> Any:
        return ranks.meet("one", a=1), ranks.sum(np.full(1, 5.0)).tolist(), ranks.meet("two", a=2), ranks.size

    result, died = together(part, die, semantics="async-apply")
    assert isinstance(died, Died)
    assert result == ([{"a": 1}], [5.0], [{"a": 2}], 1)
    told = [record.getMessage() for record in caplog.records if "goes on without" in record.getMessage()]
    assert len(told) == 1
    assert "rank 1" in told[0]


def test_a_rank_that_was_started_again_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    met, again, done = threading.Event(), threading.Event(), threading.Event()

    def part(client: distnet.Client, ranks: Ranks) -> Any:
        ranks.meet("the beginning")
        met.set()
        assert again.wait(WITHIN_S)
        try:
            return ranks.meet("the end of epoch 1", a=1), ranks.alone
        finally:
            done.set()

    def be_started_again(client: distnet.Client, ranks: Ranks) -> None:
        ranks.meet("the beginning")
        assert met.wait(WITHIN_S)
        ranks.abandon(Died())
        client.__exit__(Died, Died(), None)
        with distnet.connect(client.address, rank=1):
            again.set()
            assert done.wait(WITHIN_S)

    result, nothing = together(part, be_started_again, semantics="async-apply")
    assert nothing is None
    assert result == ([{"a": 1}], True)
    assert any("rank 1 has been started again" in record.getMessage() for record in caplog.records)
