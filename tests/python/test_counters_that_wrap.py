"""Numbers that are carried in fewer bits than they count to: what they name is never taken for something older."""

from __future__ import annotations

import numpy as np
import pytest
from worker_processes import serve

import distnet

SIZE = 1000


def gradient() -> list[np.ndarray]:
    return [np.full(SIZE, -1.0, np.float32)]


@pytest.mark.slow
@pytest.mark.parametrize("pushes_between", [2**16 - 1, 2**16])
def test_a_push_pull_after_thousands_of_plain_pushes_returns_the_newest_version(pushes_between: int) -> None:
    transport = "shm"  # only there is a push named by a word that both ends keep
    pushes = 0
    with (
        serve([np.zeros(SIZE, np.float32)], "async-apply", transport) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        for _ in range(2):
            (seen,) = client.push_pull(gradient())
            pushes += 1
            assert (set(seen), client.version) == ({float(pushes)}, pushes)
            for _ in range(pushes_between):
                client.push(gradient())
            pushes += pushes_between
            (seen,) = client.pull()
            assert (set(seen), client.version) == ({float(pushes)}, pushes)


@pytest.mark.slow
@pytest.mark.parametrize("semantics", ["sync", "async-locked"])
def test_every_reply_of_many_thousand_pushes_is_the_newest(semantics: str) -> None:
    transport = "shm"
    lacks = distnet.SEMANTICS[semantics].replies == "before-apply"  # all but its newest push
    with (
        serve([np.zeros(SIZE, np.float32)], semantics, transport) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        for push in range(1, 2**16 + 20):
            (seen,) = client.push_pull(gradient())
            least, most = float(seen[0]), float(seen[-1])
            assert push - lacks <= min(least, most) <= max(least, most) <= push
        assert client.accepted == push
    assert client.closed
