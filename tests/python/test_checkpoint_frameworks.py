"""The way from a checkpoint into a model of Keras or PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_case import a_snapshot

import distnet
from distnet.checkpoint import CheckpointFolder, load_into_keras, torch_state_dict


class Weight:
    """What is asked of a Keras weight."""

    def __init__(self, path: str, shape: tuple[int, ...]) -> None:
        self.path, self.name, self.shape = path, path.rpartition("/")[2], shape
        self.value: Any = None

    def assign(self, value: Any) -> None:
        self.value = value


class Model:
    """What is asked of a Keras model; its last weight is not trained."""

    def __init__(self, *weights: Weight) -> None:
        self.weights = list(weights)
        self.trainable_variables = self.weights[:-1]


def a_model(**shapes: tuple[int, ...]) -> Model:
    sizes = {"kernel": (2, 3), "bias": (3,), "mean": (3,)} | shapes
    return Model(*(Weight(f"net/{name}", shape) for name, shape in sizes.items()))


KERNEL, BIAS = np.ones((2, 3), np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize(
    "parameters",
    [
        {"net/bias": BIAS, "net/kernel": KERNEL},
        {"kernel": KERNEL, "bias": BIAS},
        {"net/kernel": KERNEL, "net/bias": BIAS, "net/mean": BIAS},
        [KERNEL, BIAS],
        [KERNEL, BIAS, BIAS],
    ],
)
def test_parameters_go_into_a_keras_model(tmp_path: Path, parameters: Any) -> None:
    twice = [2 * a for a in parameters] if isinstance(parameters, list) else {n: 2 * a for n, a in parameters.items()}
    CheckpointFolder(tmp_path).write(a_snapshot(parameters, ema=twice))
    for ema, factor in ((False, 1), (True, 2)):
        model = a_model()
        load_into_keras(tmp_path, model, ema)
        np.testing.assert_array_equal(model.weights[0].value, factor * KERNEL)
        np.testing.assert_array_equal(model.weights[1].value, factor * BIAS)
        assert (model.weights[2].value is None) == (len(parameters) == 2)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"net/kernel": KERNEL}, "no tensor 'net/bias'"),
        ({"net/kernel": KERNEL, "net/bias": BIAS, "net/more": BIAS}, "a tensor 'net/more', and the model none"),
        (
            {"net/kernel": KERNEL.T.copy(), "net/bias": BIAS},
            r"'net/kernel' of .* \(3, 2\), and the model's weight \(2, 3\)",
        ),
        ([KERNEL], "1 tensors without names, and the model 2 trainable weights of 3"),
        ([BIAS, KERNEL], "tensor '0' of"),
    ],
)
def test_what_a_keras_model_has_not_is_named_and_nothing_is_changed(
    tmp_path: Path, parameters: Any, expected: str
) -> None:
    path = CheckpointFolder(tmp_path).write(a_snapshot(parameters))
    model = a_model()
    with pytest.raises(distnet.ManifestMismatch, match=expected):
        load_into_keras(path, model)
    assert [weight.value for weight in model.weights] == [None] * 3
    with pytest.raises(distnet.ConfigError, match="holds no moving average"):
        load_into_keras(path, model, ema=True)


def test_parameters_go_into_a_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    parameters = {"weight": np.ones((2, 3), np.float32), "bias": np.full(2, 5, np.float32)}
    CheckpointFolder(tmp_path).write(a_snapshot(parameters))
    state = torch_state_dict(tmp_path)
    layer.load_state_dict(state)
    state["bias"] += 1  # memory of its own
    assert layer.bias.tolist() == [5, 5]
