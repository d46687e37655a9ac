"""What a TensorFlow model holds beside its parameters: workers average it over their ranks when asked to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import distnet

tf = pytest.importorskip("tensorflow")
framework = pytest.importorskip("distnet.tensorflow")


class NoClient:
    """Holds the parameters of a model, for workers that do not train."""

    version = staleness = 0

    def __init__(self, model: Any, rank: int) -> None:
        self.rank = rank
        self._parameters = [variable.numpy() for variable in model.trainable_variables]

    def pull(self, *, out: Any = None) -> Any:
        return self._parameters if out is None else out


def model_of(features: int = 3) -> Any:
    """Return a model with batch normalisation, and with dropout, whose seed is no number to average."""
    return tf.keras.Sequential([
        tf.keras.Input((features,)),
        tf.keras.layers.BatchNormalization(),
        tf.keras.layers.Dropout(0.5),
        tf.keras.layers.Dense(1),
    ])  # fmt: skip


def statistics_of(model: Any) -> list[Any]:
    return [v.numpy() for v in (model.layers[0].moving_mean, model.layers[0].moving_variance)]


def synchronized(models: list[Any], **options: Any) -> list[Any]:
    """Have one worker a model average its state with the others, and return what each raised, or None."""

    def work(rank: int) -> Any:
        with distnet.ProcessGroup(coordinator.address, rank, len(models), **options) as group:
            worker = framework.TensorFlowWorker(
                models[rank], NoClient(models[rank], rank), loss=lambda model, batch: 0.0, device="CPU:0"
            )
            try:
                worker.synchronize_state(group)
            except distnet.DistNetError as error:
                return error
        return None

    with distnet.GroupCoordinator() as coordinator, ThreadPoolExecutor(len(models)) as pool:
        return list(pool.map(work, range(len(models))))


def test_moving_statistics_are_averaged_and_seeds_are_left_alone() -> None:
    models = [model_of() for _ in range(2)]
    for rank, model in enumerate(models):
        model.layers[0].moving_mean.assign(np.array([1.0, 2.0, 3.0]) * (rank + 1))
        model.layers[0].moving_variance.assign(np.full(3, 4.0 * rank))
    seeds = [[v.numpy() for v in model.non_trainable_variables if "seed" in v.path] for model in models]
    assert [len(own) for own in seeds] == [1, 1]
    assert synchronized(models) == [None, None]
    for model, own in zip(models, seeds, strict=True):
        mean, variance = statistics_of(model)
        assert mean.tolist() == [1.5, 3.0, 4.5]
        assert variance.tolist() == [2.0, 2.0, 2.0]
        kept = [v.numpy() for v in model.non_trainable_variables if "seed" in v.path]
        assert np.array_equal(kept, own)


def test_ranks_with_different_models_hear_of_it_and_keep_theirs() -> None:
    models = [model_of(3), model_of(4)]
    before = [statistics_of(model) for model in models]
    errors = synchronized(models)
    assert [type(error) for error in errors] == [distnet.CollectiveMismatch] * 2
    for model, own in zip(models, before, strict=True):
        for now, then in zip(statistics_of(model), own, strict=True):
            assert np.array_equal(now, then)


def test_without_a_group_all_ranks_of_the_server_meet_there() -> None:
    models = [model_of() for _ in range(2)]
    for rank, model in enumerate(models):
        model.layers[0].moving_mean.assign(np.array([1.0, 2.0, 3.0]) * (rank + 1))
    initial = [variable.numpy() for variable in models[0].trainable_variables]

    def work(rank: int) -> None:
        with distnet.connect(server.address, rank=rank) as client:
            worker = framework.TensorFlowWorker(models[rank], client, loss=lambda model, batch: 0.0, device="CPU:0")
            worker.finish()
            worker.synchronize_state()

    with distnet.ParameterServer(initial, semantics="sync", workers=2) as server, ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert [statistics_of(model)[0].tolist() for model in models] == [[1.5, 3.0, 4.5]] * 2
