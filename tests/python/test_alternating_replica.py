"""Memory for replies that a framework may take as its own."""

from __future__ import annotations

import numpy as np

from distnet.frameworks.replica import AlternatingReplica


def replied(replica: AlternatingReplica, value: float) -> None:
    out = replica.out
    assert isinstance(out, dict)
    for array in out.values():
        array[...] = value
    replica.turn()


def test_replies_take_turns_in_two_pieces_of_memory() -> None:
    replica = AlternatingReplica({"a": np.zeros(3, np.float32)})
    places = set()
    for value in range(6):
        replied(replica, value)
        assert replica.tensors[0].tolist() == [value] * 3
        places.add(replica.tensors[0].ctypes.data)
    assert len(places) == 2


def test_memory_that_somebody_refers_to_is_not_written_to() -> None:
    replica = AlternatingReplica({"a": np.zeros(3, np.float32), "b": np.zeros((), np.float32)})
    replied(replica, 1.0)
    kept = replica.tensors[1]
    for value in range(2, 8):
        replied(replica, value)
    assert kept == 1.0
    assert replica.tensors[1] == 7.0


def test_memory_that_nobody_refers_to_any_more_is_used_again() -> None:
    replica = AlternatingReplica({"a": np.zeros(3, np.float32)})
    places = set()
    for value in range(20):
        replied(replica, value)
        kept = replica.tensors[0]  # until the next one
        places.add(kept.ctypes.data)
    assert len(places) <= 3
