"""What Keras allows with a model goes on where the model is distributed, or is told; on the backend TensorFlow."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from keras_cases.tables import ADAM
from keras_cases.training import Training
from keras_ranks import KerasRanks, rank_pool, ranks
from worker_processes import WorkerError

import distnet

__all__ = ["rank_pool", "ranks"]

BACKEND = "tensorflow"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("keras", BACKEND)),
        reason="Keras or TensorFlow is missing",
    ),
]


@pytest.fixture
def address(ranks: KerasRanks) -> Iterator[str]:
    """Of a server for one worker, which brings the model."""
    with distnet.ParameterServer(semantics="sync", workers=1) as server:
        yield server.local_address


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_a_model_that_was_set_from_a_distributed_one_stays_as_it_was(
    ranks: KerasRanks, address: str, compiled: dict[str, object]
) -> None:
    outcome = ranks.do(0, "promises.set_from_parameters", rank=0, address=address, training=Training(compiled=compiled))
    assert outcome["before"] == outcome["after"]


def test_an_exclusion_from_weight_decay_that_comes_late_is_refused(ranks: KerasRanks, address: str) -> None:
    training = Training(optimizer="AdamW", settings=ADAM)
    with pytest.raises(WorkerError, match=r"exclude_from_weight_decay\(\) before distribute\(\)") as told:
        ranks.do(0, "promises.excluded_late", rank=0, address=address, training=training)
    assert told.value.name == "ConfigError"


def test_a_list_of_callbacks_goes_through_several_fits(ranks: KerasRanks, address: str) -> None:
    found = ranks.do(0, "promises.fitted_twice_with_a_list", rank=0, address=address, training=Training())
    assert found == 2  # the history, and one of ours


def test_values_that_a_step_drops_are_told_of_and_those_that_a_fit_brings_are_not(
    ranks: KerasRanks, address: str
) -> None:
    told = ranks.do(0, "promises.loaded_late", rank=0, address=address, training=Training())
    assert told["fit"] == []
    assert len(told["train_on_batch"]) == 1
    assert "the server does not hear of them" in told["train_on_batch"][0]
