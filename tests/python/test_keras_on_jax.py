"""`distnet.keras` on the backend JAX: the contract of every backend, in processes that load this one."""

from __future__ import annotations

import importlib.util

import pytest
from keras_contract import GraphContract, ThoroughGraphContract
from keras_ranks import rank_pool, ranks
from keras_wrong_use import WrongArgumentsContract, WrongUseContract

__all__ = ["rank_pool", "ranks"]

BACKEND = "jax"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("keras", BACKEND)), reason="Keras or JAX is missing"
    ),
]


class TestOnJAX(GraphContract):
    """What is tested on each backend in every run."""


class TestWrongUseOnJAX(WrongUseContract):
    """What is tested on each backend in every run."""


@pytest.mark.long
class TestThoroughlyOnJAX(ThoroughGraphContract):
    """What another backend has in every run."""


@pytest.mark.long
class TestWrongArgumentsOnJAX(WrongArgumentsContract):
    """What another backend has in every run."""
