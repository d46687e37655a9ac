"""What a model holds and does not train: joined where it changed, alike on all ranks, and else left to the bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.frameworks.ranks import Ranks

keras = pytest.importorskip("keras")
State = pytest.importorskip("distnet.keras.state").State
join_metrics = pytest.importorskip("distnet.keras.metrics").join_metrics
averaged_logs = pytest.importorskip("distnet.keras.metrics").averaged_logs

WITHIN_S = 60.0


def model_of(features: int = 3, dtype: str = "float32") -> Any:
    """Return a model with moving statistics, a frozen layer, and a seed."""
    frozen = keras.layers.Dense(4, trainable=False, name="frozen", dtype=dtype)
    return keras.Sequential([
        keras.Input((features,)),
        keras.layers.BatchNormalization(name="norm", dtype=dtype),
        frozen,
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1),
    ])  # fmt: skip


def on_all(models: list[Any], part: Callable[[Any, Ranks], Any]) -> list[Any]:
    """Do something with each model, on threads that stand for ranks; return what each returned or raised."""
    with distnet.ParameterServer([np.zeros(1, np.float32)], semantics="sync", workers=len(models)) as server:

        def run(rank: int) -> Any:
            with distnet.connect(server.address, rank=rank) as client:
                ranks = Ranks(client, "a test")
                ranks.meet("the beginning")
                try:
                    return part(models[rank], ranks)
                except distnet.DistNetError as error:
                    return error
                finally:
                    ranks.close()

        with ThreadPoolExecutor(len(models)) as pool:
            return [each.result(WITHIN_S) for each in [pool.submit(run, rank) for rank in range(len(models))]]


def value(variable: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.convert_to_tensor(variable), "float32")))


def seeds(model: Any) -> list[Any]:
    found = [variable for variable in model.non_trainable_variables if "seed" in variable.path]
    return [keras.ops.convert_to_numpy(keras.ops.cast(each.value, "float64")).tolist() for each in found]


def with_statistics(models: list[Any], said: list[str], how: str, *, joins: int = 1) -> None:
    """Begin with the same state, let each model have statistics of its own, and join them."""

    def part(model: Any, ranks: Ranks) -> None:
        state = State(model, how, said.append)
        state.begin(ranks)
        for _ in range(joins):
            model.layers[0].moving_mean.assign(np.array([1.0, 2.0, 3.0]) * (ranks.rank + 1))
            model.layers[0].moving_variance.assign(np.full(3, 4.0 * ranks.rank))
            state.join(ranks)

    assert on_all(models, part) == [None] * len(models)


def test_moving_statistics_are_averaged_and_it_is_said_once_by_each() -> None:
    models, said = [model_of() for _ in range(2)], []  # type: ignore[var-annotated]
    own_seeds = [seeds(model) for model in models]
    assert own_seeds[0] != own_seeds[1]
    with_statistics(models, said, "average", joins=2)
    for model, own in zip(models, own_seeds, strict=True):
        assert value(model.layers[0].moving_mean).tolist() == [1.5, 3.0, 4.5]
        assert value(model.layers[0].moving_variance).tolist() == [2.0, 2.0, 2.0]
        assert seeds(model) == own
    assert len(said) == 2  # a line a rank
    for line in said:
        assert "norm/moving_mean and 1 more, which are not trained, are averaged over all workers" in line


def test_rank_0s_statistics_go_to_all() -> None:
    models, said = [model_of() for _ in range(3)], []  # type: ignore[var-annotated]
    with_statistics(models, said, "rank0")
    for model in models:
        assert value(model.layers[0].moving_mean).tolist() == [1.0, 2.0, 3.0]
        assert value(model.layers[0].moving_variance).tolist() == [0.0, 0.0, 0.0]
    assert all("are taken from rank 0 by all workers" in line for line in said)


@pytest.mark.parametrize("how", ["average", "rank0"])
def test_frozen_weights_are_rank_0s_from_the_beginning_and_stay_so_to_the_bit(how: str) -> None:
    models = [model_of() for _ in range(3)]  # a mean of three equal floats need not be that float
    rank_0s = value(models[0].layers[1].kernel)
    assert not np.array_equal(rank_0s, value(models[1].layers[1].kernel))
    with_statistics(models, [], how)
    for model in models:
        assert np.array_equal(value(model.layers[1].kernel), rank_0s)


def test_a_change_on_one_rank_alone_is_joined_on_all() -> None:
    models = [model_of() for _ in range(2)]

    def part(model: Any, ranks: Ranks) -> None:
        state = State(model, "average", lambda line: None)
        state.begin(ranks)
        if ranks.rank == 1:
            model.layers[0].moving_mean.assign(np.full(3, 8.0))
        state.join(ranks)

    on_all(models, part)
    assert [value(model.layers[0].moving_mean).tolist() for model in models] == [[4.0] * 3] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_statistics_of_half_precision_are_averaged_in_float32(dtype: str) -> None:
    models = [model_of(dtype=dtype) for _ in range(2)]
    with_statistics(models, [], "average")
    for model in models:
        assert value(model.layers[0].moving_mean).tolist() == [1.5, 3.0, 4.5]


def test_ranks_with_different_models_hear_of_it() -> None:
    models = [model_of(3), model_of(4)]
    errors = on_all(models, lambda model, ranks: State(model, "average", print).begin(ranks))
    assert [type(error) for error in errors] == [distnet.CollectiveMismatch] * 2
    assert all("an exchange of state" in str(error) for error in errors)


# ---- metrics -------------------------------------------------------------------------------------------------------
def test_metrics_are_those_of_all_examples_whoever_has_them() -> None:
    random = np.random.default_rng(3)
    y, guess = random.integers(0, 2, (60, 1)), random.random((60, 1))
    shares = [slice(0, 10), slice(10, 45), slice(45, 60)]
    kinds = [keras.metrics.AUC, keras.metrics.Precision, keras.metrics.BinaryAccuracy, keras.metrics.MeanSquaredError]

    class Watched(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.watched = [kind() for kind in kinds]

        @property
        def metrics(self) -> Any:
            return self.watched

    whole, models = Watched(), [Watched() for _ in shares]
    for metric in whole.watched:
        metric.update_state(y, guess)
    for model, share in zip(models, shares, strict=True):
        for metric in model.watched:
            metric.update_state(y[share], guess[share])
    on_all(models, join_metrics)
    expected = [float(metric.result()) for metric in whole.watched]
    for model in models:
        np.testing.assert_allclose([float(metric.result()) for metric in model.watched], expected, rtol=1e-6)


def test_logs_of_a_programs_own_are_averaged_where_they_are_numbers() -> None:
    logs = [{"loss": 1.0, "rate": np.float32(0.5), "said": "yes"}, {"loss": 3.0, "rate": 0.5, "said": "no"}]
    joined = on_all(logs, averaged_logs)
    assert joined == [{"loss": 2.0, "rate": 0.5, "said": "yes"}, {"loss": 2.0, "rate": 0.5, "said": "no"}]
