"""What the way of Keras's JAX backend has beside the contract of all backends: memory that steps lend."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("keras")

from distnet.keras.routes.jax import LendingReplica


def test_replies_go_to_the_memory_that_a_step_lends_and_never_after_it() -> None:
    replica = LendingReplica({"kernel": np.zeros(2, np.float32), "bias": np.zeros(1, np.float32)})
    own = replica.tensors
    lent = [np.zeros(2, np.float32), np.zeros(1, np.float32)]
    with replica.lent(lent):
        assert isinstance(replica.out, dict)
        replica.out["kernel"][...] = 1.0
        assert replica.tensors[0] is lent[0]
    assert lent[0].tolist() == [1.0, 1.0]
    assert isinstance(replica.out, dict)
    replica.out["kernel"][...] = 2.0
    assert lent[0].tolist() == [1.0, 1.0], "the step's memory is another's by now"
    assert replica.tensors[0] is own[0]


def test_a_step_that_fails_has_its_memory_back_too() -> None:
    replica = LendingReplica([np.zeros(2, np.float32)])
    own = replica.tensors
    with pytest.raises(ZeroDivisionError), replica.lent([np.ones(2, np.float32)]):
        _ = 1 / 0
    assert replica.tensors[0] is own[0]
