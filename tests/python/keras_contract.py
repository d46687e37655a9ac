"""What two workers behind Keras do, on every backend: they train as one process does with the whole batch.

Every run of the tests has a :class:`KerasContract` for each backend; the rest of the cases is in
:class:`ThoroughContract`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from keras_cases import tables
from keras_cases.tables import MOMENTUM
from keras_cases.training import STEPS, WORKERS, Training
from keras_ranks import KerasRanks, assert_same, assert_same_history

import distnet

__all__ = ["GraphContract", "KerasContract", "ThoroughContract", "ThoroughGraphContract"]


def by_case(cases: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Run a test with each case, under its name."""
    return pytest.mark.parametrize("case", [pytest.param(value, id=name) for name, value in cases.items()])


def check_whole(ranks: KerasRanks, training: Training) -> None:
    """Check weights, metrics and counts of both ranks against one process with the whole batch."""
    # Keras computes the same with and without XLA, which takes a second to compile it.
    without_xla = {name: value for name, value in training.compiled.items() if name != "jit_compile"}
    alone = ranks.alone(dataclasses.replace(training, compiled=without_xla))
    outcome = ranks.together(training)
    skipped = len({step for _, step in training.spoilt}) * training.epochs * training.fits
    updates = (training.all_steps - skipped) // (training.settings.get("gradient_accumulation_steps") or 1)
    assert (outcome.stats["updates"], outcome.stats["abstained"]) == (updates, WORKERS * skipped)
    for rank in outcome.ranks:
        assert_same(rank, alone)
        assert (rank["iterations"], rank["rate"]) == (alone["iterations"], alone["rate"])
        assert_same_history(rank, alone)


def check_halves(ranks: KerasRanks, training: Training) -> None:
    """Check weights, state, metrics and counts of both ranks against the imitation of them."""
    imitated = ranks.imitated(training)
    outcome = ranks.together(training)
    assert (outcome.stats["updates"], outcome.stats["abstained"]) == (training.all_steps, len(training.spoilt))
    for rank, expected in zip(outcome.ranks, imitated, strict=True):
        assert_same(rank, expected)
        assert_same(rank, expected, what="others")
        assert_same_history(rank, expected)


def check_local(ranks: KerasRanks, training: Training) -> None:
    """Check weights and counts of both ranks, which step by themselves, against the imitation of them."""
    imitated = ranks.imitated(training, "local")
    outcome = ranks.together(training)
    assert outcome.stats["updates"] == -(-STEPS // training.distributed["every"])
    for rank, expected in zip(outcome.ranks, imitated, strict=True):
        assert_same(rank, expected)
        assert rank["iterations"] == STEPS


def check_asynchronous(ranks: KerasRanks, semantics: str, servers: int) -> None:
    """Check that the loss falls by nine tenths, at least, of what it falls by for one process."""
    training = Training(epochs=4)
    alone = ranks.alone(training)
    outcome = ranks.together(training, semantics=semantics, servers=servers)
    assert outcome.stats["updates"] == WORKERS * training.all_steps  # each push is an update by itself
    assert_same(outcome.ranks[0], outcome.ranks[1], 0.0)
    losses = alone["history"]["loss"]
    for rank in outcome.ranks:
        assert rank["history"] == outcome.ranks[0]["history"]
        assert losses[0] - rank["history"]["loss"][-1] > 0.9 * (losses[0] - losses[-1])


class KerasContract:
    """For every backend."""

    @by_case(tables.WHOLE)
    def test_two_workers_equal_one_process_with_the_whole_batch(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)

    @by_case(tables.OPTIMIZERS)
    def test_an_optimizer_at_the_server_equals_keras_own(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)

    @by_case(tables.BY_HALVES)
    def test_what_differs_by_batch_equals_the_halves_computed_in_turn(self, ranks: KerasRanks, case: Training) -> None:
        check_halves(ranks, case)

    @by_case(tables.MIXED)
    def test_mixed_precision_equals_one_process_to_its_own_rounding(
        self, ranks: KerasRanks, case: tuple[Training, float]
    ) -> None:
        training, rounding = case
        alone = ranks.alone(training)
        outcome = ranks.together(training)
        skipped = len(training.spoilt) // WORKERS
        assert (outcome.stats["updates"], outcome.stats["abstained"]) == (STEPS - skipped, WORKERS * skipped)
        for rank, imitated in zip(outcome.ranks, ranks.imitated(training), strict=True):
            assert_same(rank, imitated, rounding / 16)
            assert_same(rank, alone, rounding)
            assert rank["iterations"] == STEPS - skipped
        assert_same(outcome.ranks[0], outcome.ranks[1], 0.0)

    @by_case(tables.LOCAL)
    def test_local_updates_are_averaged_every_so_many_steps(self, ranks: KerasRanks, case: Training) -> None:
        check_local(ranks, case)

    @pytest.mark.parametrize(("semantics", "servers"), tables.ASYNCHRONOUS.items())
    def test_asynchronous_workers_reach_the_loss_of_one_process(
        self, ranks: KerasRanks, semantics: str, servers: int
    ) -> None:
        check_asynchronous(ranks, semantics, servers)

    @pytest.mark.parametrize(
        ("distributed", "steps"),
        [({}, 2), ({"update": "local"}, None), ({"update": "local", "every": 2}, None)],
        ids=["accumulation", "local", "local, every 2"],
    )
    def test_a_rank_that_skips_a_step_by_itself_keeps_no_other_waiting(
        self, ranks: KerasRanks, distributed: dict[str, Any], steps: int | None
    ) -> None:
        settings = {"learning_rate": 0.01, "gradient_accumulation_steps": steps}
        scaled = {"initial_scale": 4.0}
        training = Training(settings=settings, scaled=scaled, spoilt=[[1, 2]], distributed=distributed, epochs=2)
        outcome = ranks.together(training)
        assert_same(outcome.ranks[0], outcome.ranks[1], 0.0)
        assert outcome.stats["updates"] == training.all_steps // (steps or distributed.get("every", 1))
        assert outcome.stats["abstained"] == 0

    def test_the_server_holds_the_optimizer_its_state_and_the_parameters(self, ranks: KerasRanks) -> None:
        outcome = ranks.together(Training(settings=MOMENTUM))
        assert dataclasses.replace(outcome.optimizer, learning_rate=0.5) == distnet.Momentum(
            0.5, momentum=0.9, nesterov=True, velocity_holds_rate=True
        )
        for rank, result in enumerate(outcome.ranks):
            for name, array in outcome.parameters.items():
                np.testing.assert_array_equal(result["weights"][name], array.astype(np.float64))
            assert (result["version"], result["state"]) == (STEPS, [])
            ways = [line for line in result["said"].splitlines() if "gradients leave" in line]
            assert [way.partition("gradients leave")[0] for way in ways] == [f"distnet: rank {rank}: "]


class GraphContract(KerasContract):
    """For the backends that have graphs."""

    @by_case(tables.GRAPHS)
    def test_a_graph_equals_one_process_with_the_whole_batch(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)


class ThoroughContract:
    """More cases, for every backend."""

    @by_case(tables.MORE_WHOLE)
    def test_two_workers_equal_one_process_with_the_whole_batch(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)

    @by_case(tables.MORE_OPTIMIZERS)
    def test_an_optimizer_at_the_server_equals_keras_own(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)

    @by_case(tables.MORE_BY_HALVES)
    def test_what_differs_by_batch_equals_the_halves_computed_in_turn(self, ranks: KerasRanks, case: Training) -> None:
        check_halves(ranks, case)

    def test_averages_that_a_fit_leaves_are_what_the_next_one_begins_with(self, ranks: KerasRanks) -> None:
        if ranks.backend == "jax":
            pytest.skip("with averages, Keras's own second fit raises a TypeError on JAX (3.15)")
        training = Training(settings=tables.AVERAGED, fits=2, steps=4)
        alone = ranks.alone(training)
        outcome = ranks.together(training)
        for rank in outcome.ranks:
            assert_same(rank, alone)
        assert outcome.stats["updates"] == training.all_steps + 1  # rank 0 brings the averages to the server

    def test_averages_that_a_fit_leaves_are_in_the_model_after_finish(self, ranks: KerasRanks) -> None:
        training = Training(settings=tables.AVERAGED, finished=True)
        alone = ranks.alone(training)
        for rank in ranks.together(training).ranks:
            assert_same(rank, alone)

    @by_case(tables.NARROW)
    def test_other_floats_are_float32_at_the_server_and_cast_once(
        self, ranks: KerasRanks, case: tuple[str, float]
    ) -> None:
        dtype, tolerance = case
        training = Training(dtype=dtype, steps=4)
        outcome = ranks.together(training)
        alone = ranks.alone(training)  # which rounds its parameters at every step
        for rank in outcome.ranks:
            assert set(rank["dtypes"].values()) == {dtype}
            assert_same(rank, alone, tolerance)
        assert_same(outcome.ranks[0], outcome.ranks[1], 0.0)

    @by_case(tables.MORE_LOCAL)
    def test_local_updates_are_averaged_every_so_many_steps(self, ranks: KerasRanks, case: Training) -> None:
        check_local(ranks, case)

    @pytest.mark.parametrize(("semantics", "servers"), tables.MORE_ASYNCHRONOUS.items())
    def test_asynchronous_workers_reach_the_loss_of_one_process(
        self, ranks: KerasRanks, semantics: str, servers: int
    ) -> None:
        check_asynchronous(ranks, semantics, servers)

    def test_a_client_that_is_given_stays_open(self, ranks: KerasRanks) -> None:
        training = Training(steps=4)
        alone = ranks.alone(training)
        values = ranks.do(0, "runs.initial", training=training)
        model = {name: np.array(value, np.float32) for name, value in values.items()}
        with distnet.ParameterServer(model, semantics="sync", workers=WORKERS, optimizer=distnet.SGD(0.5)) as server:
            for result in ranks.both("runs.over_a_client", server, training=training):
                assert_same(result, alone)


class ThoroughGraphContract(ThoroughContract):
    """More cases, for the backends that have graphs."""

    @by_case(tables.MORE_GRAPHS)
    def test_a_graph_equals_one_process_with_the_whole_batch(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)

    @by_case(tables.OPTIMIZERS_IN_GRAPHS)
    def test_an_optimizer_in_a_graph_equals_keras_own(self, ranks: KerasRanks, case: Training) -> None:
        check_whole(ranks, case)
