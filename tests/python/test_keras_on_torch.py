"""`distnet.keras` on the backend PyTorch: the contract of every backend, in processes that load this one."""

from __future__ import annotations

import importlib.util

import pytest
from keras_cases.tables import MOMENTUM
from keras_cases.training import Training
from keras_contract import KerasContract, ThoroughContract, check_whole
from keras_ranks import KerasRanks, rank_pool, ranks
from keras_wrong_use import WrongArgumentsContract, WrongUseContract

__all__ = ["rank_pool", "ranks"]

BACKEND = "torch"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("keras", BACKEND)), reason="Keras or PyTorch is missing"
    ),
]


class TestOnPyTorch(KerasContract):
    """What is tested on each backend in every run."""


class TestWrongUseOnPyTorch(WrongUseContract):
    """What is tested on each backend in every run."""


class TestThoroughlyOnPyTorch(ThoroughContract):
    """What one backend is enough for in every run."""


class TestWrongArgumentsOnPyTorch(WrongArgumentsContract):
    """What one backend is enough for in every run."""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_what_pytorch_compiles_equals_one_process_with_the_whole_batch(ranks: KerasRanks) -> None:
    ranks.within_s = 300.0
    check_whole(ranks, Training(settings=MOMENTUM, compiled={"jit_compile": True}))
