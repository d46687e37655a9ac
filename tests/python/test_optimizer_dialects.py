"""Each dialect of an optimizer against its original, in float64, over 1,000 steps with a changing rate.

Our error may be twice that of the original where that runs in float32, and a thousandth of the way at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

import distnet
from distnet.optimizers import Optimizer

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

STEPS = 1000
SIZE = 257
RATE = distnet.ExponentialDecay(0.01, 0.05, updates=STEPS)
RATES = [0.01 * 0.05 ** (update / STEPS) for update in range(STEPS)]
BETAS = (1 - 2**-3, 1 - 2**-10)  # which float32 holds: Keras rounds them to it before it takes their powers in float64
STORES = [distnet.MutexStore, distnet.LockFreeStore]

Vector: TypeAlias = npt.NDArray[Any]
Original: TypeAlias = Callable[[Any, Vector, Vector], Vector]  # (dtype, parameters, gradients) -> parameters


def in_torch(make: Callable[..., Any], **settings: Any) -> Original:
    """Return what runs an optimizer of PyTorch."""

    def run(dtype: Any, parameters: Vector, gradients: Vector) -> Vector:
        with torch_dtype(dtype):
            parameter = torch.nn.Parameter(torch.from_numpy(parameters.astype(dtype)))
            optimizer = make([parameter], lr=0.0, foreach=False, **settings)
            for rate, gradient in zip(RATES, torch.from_numpy(gradients.astype(dtype)), strict=True):
                optimizer.param_groups[0]["lr"] = rate
                parameter.grad = gradient
                optimizer.step()
            return np.asarray(parameter.detach().numpy(), np.float64)

    return run


def in_keras(make: Callable[..., Any], **settings: Any) -> Original:
    """Return what runs an optimizer of Keras."""

    def run(dtype: Any, parameters: Vector, gradients: Vector) -> Vector:
        with keras_dtype(dtype):
            parameter = keras.Variable(parameters.astype(dtype), dtype=np.dtype(dtype).name)
            optimizer = make(learning_rate=0.0, **settings)
            optimizer.build([parameter])

            def step(gradient: Any, rate: Any) -> None:
                optimizer.learning_rate = rate
                optimizer.apply([gradient])

            take = compiled(step)
            for rate, gradient in zip(np.array(RATES, dtype), gradients.astype(dtype), strict=True):
                take(keras.ops.convert_to_tensor(gradient), keras.ops.convert_to_tensor(rate))
            return np.asarray(keras.ops.convert_to_numpy(parameter.value), np.float64)

    return run


def compiled(step: Callable[..., None]) -> Callable[..., None]:
    """Return a step that is quick also where Keras runs on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return step
    made: Callable[..., None] = pytest.importorskip("tensorflow").function(step)
    return made


@contextmanager
def torch_dtype(dtype: Any) -> Iterator[None]:
    """Have PyTorch count steps, and multiply NAdam's shares, in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == np.float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def keras_dtype(dtype: Any) -> Iterator[None]:
    """Have Keras keep the rate in a dtype."""
    before = keras.config.floatx()
    keras.config.set_floatx(np.dtype(dtype).name)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


# Ours, the original, and the names of the settings without which ours is another optimizer.
CASES: dict[str, tuple[Optimizer, Original, tuple[str, ...]]] = {
    "keras SGD with decay": (
        distnet.SGD(RATE, weight_decay=0.1, decoupled_weight_decay=True),
        in_keras(keras.optimizers.SGD, weight_decay=0.1),
        (),
    ),
    "torch SGD with dampening": (
        distnet.Momentum(RATE, 0.9, weight_decay=0.01, dampening=0.3),
        in_torch(torch.optim.SGD, momentum=0.9, weight_decay=0.01, dampening=0.3),
        ("dampening",),
    ),
    "keras SGD with momentum": (
        distnet.Momentum(RATE, 0.9, velocity_holds_rate=True),
        in_keras(keras.optimizers.SGD, momentum=0.9),
        ("velocity_holds_rate",),
    ),
    "keras SGD with Nesterov's momentum and decay": (
        distnet.Momentum(
            RATE, 0.8, nesterov=True, weight_decay=0.1, velocity_holds_rate=True, decoupled_weight_decay=True
        ),
        in_keras(keras.optimizers.SGD, momentum=0.8, nesterov=True, weight_decay=0.1),
        ("velocity_holds_rate", "nesterov"),
    ),
    "keras Adagrad": (
        distnet.Adagrad(RATE, initial_accumulator_value=0.1, eps=1e-3, eps_inside_root=True),
        in_keras(keras.optimizers.Adagrad, initial_accumulator_value=0.1, epsilon=1e-3),
        ("eps_inside_root",),
    ),
    "keras RMSprop": (
        distnet.RMSProp(RATE, alpha=0.9, eps=1e-4, eps_inside_root=True),
        in_keras(keras.optimizers.RMSprop, rho=0.9, epsilon=1e-4),
        ("eps_inside_root",),
    ),
    "keras RMSprop with momentum": (
        distnet.RMSProp(RATE, alpha=0.9, eps=1e-4, momentum=0.5, eps_inside_root=True, velocity_holds_rate=True),
        in_keras(keras.optimizers.RMSprop, rho=0.9, epsilon=1e-4, momentum=0.5),
        ("eps_inside_root", "velocity_holds_rate"),
    ),
    "keras RMSprop, centered, with momentum": (
        distnet.RMSProp(
            RATE, alpha=0.9, eps=1e-4, momentum=0.5, centered=True, eps_inside_root=True, velocity_holds_rate=True
        ),
        in_keras(keras.optimizers.RMSprop, rho=0.9, epsilon=1e-4, momentum=0.5, centered=True),
        ("centered", "eps_inside_root", "velocity_holds_rate"),
    ),
    "torch RMSprop, centered": (
        distnet.RMSProp(RATE, alpha=0.95, eps=1e-6, weight_decay=0.01, centered=True),
        in_torch(torch.optim.RMSprop, alpha=0.95, eps=1e-6, weight_decay=0.01, centered=True),
        ("centered",),
    ),
    "torch RMSprop, centered, with momentum": (
        distnet.RMSProp(RATE, alpha=0.95, eps=1e-6, momentum=0.9, centered=True),
        in_torch(torch.optim.RMSprop, alpha=0.95, eps=1e-6, momentum=0.9, centered=True),
        ("centered",),
    ),
    "torch Adam with amsgrad": (
        distnet.Adam(RATE, betas=(0.9, 0.95), weight_decay=0.01, amsgrad=True),
        in_torch(torch.optim.Adam, betas=(0.9, 0.95), weight_decay=0.01, amsgrad=True),
        ("amsgrad",),
    ),
    "torch AdamW with amsgrad": (
        distnet.AdamW(RATE, betas=(0.9, 0.95), weight_decay=0.1, amsgrad=True),
        in_torch(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1, amsgrad=True),
        ("amsgrad",),
    ),
    "keras Adam": (
        distnet.Adam(RATE, betas=BETAS, eps=1e-3, eps_before_correction=True),
        in_keras(keras.optimizers.Adam, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=1e-3),
        ("eps_before_correction",),
    ),
    "keras Adam with amsgrad": (
        distnet.Adam(RATE, betas=(0.9, 0.95), eps=1e-3, amsgrad=True, eps_before_correction=True),
        in_keras(keras.optimizers.Adam, beta_2=0.95, epsilon=1e-3, amsgrad=True),
        ("amsgrad", "eps_before_correction"),
    ),
    "keras AdamW": (
        distnet.AdamW(RATE, betas=BETAS, eps=1e-3, weight_decay=0.1, eps_before_correction=True),
        in_keras(keras.optimizers.AdamW, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=1e-3, weight_decay=0.1),
        ("eps_before_correction",),
    ),
    "torch NAdam": (distnet.NAdam(RATE), in_torch(torch.optim.NAdam), ()),
    "torch NAdam with decay": (
        distnet.NAdam(RATE, betas=(0.95, 0.99), weight_decay=0.01, momentum_decay=0.0),
        in_torch(torch.optim.NAdam, betas=(0.95, 0.99), weight_decay=0.01, momentum_decay=0.0),
        (),
    ),
    "torch NAdam with decoupled decay": (
        distnet.NAdam(RATE, weight_decay=0.1, momentum_decay=0.1, decoupled_weight_decay=True),
        in_torch(torch.optim.NAdam, weight_decay=0.1, momentum_decay=0.1, decoupled_weight_decay=True),
        ("decoupled_weight_decay", "momentum_decay"),
    ),
    "keras Nadam": (
        distnet.NAdam(RATE, eps=1e-7, momentum_decay=1.0),
        in_keras(keras.optimizers.Nadam, epsilon=1e-7),
        ("momentum_decay",),
    ),
    "keras Lion": (
        distnet.Lion(RATE, betas=(0.9, 0.99), weight_decay=0.1),
        in_keras(keras.optimizers.Lion, beta_1=0.9, beta_2=0.99, weight_decay=0.1),
        (),
    ),
}


def random_steps() -> tuple[Vector, Vector]:
    """Return starting parameters, and gradients of very different sizes with a common drift, as training has them."""
    random = np.random.default_rng(20261128)
    parameters = random.normal(size=SIZE).astype(np.float32)
    scales = 10.0 ** random.uniform(-4, 0, size=SIZE)
    gradients = (random.normal(size=(STEPS, SIZE)) + 0.1) * scales
    return parameters, gradients.astype(np.float32)


def ours_after(store_type: Any, optimizer: Optimizer, parameters: Vector, gradients: Vector) -> Vector:
    """Return the parameters after the store's steps."""
    store = store_type(parameters, optimizer)
    for gradient in gradients:
        store.apply(gradient)
    out = np.empty_like(parameters)
    store.read(out)
    return out.astype(np.float64)


def distance(left: Vector, right: Vector) -> float:
    """Return the Euclidean norm of the difference."""
    return float(np.linalg.norm(left - right))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow's, on reading variables
@pytest.mark.parametrize("name", CASES)
def test_a_dialect_is_as_close_to_its_original_as_float32_allows(name: str) -> None:
    optimizer, original, decisive = CASES[name]
    parameters, gradients = random_steps()
    exact = original(np.float64, parameters, gradients)
    allowed = min(2 * distance(original(np.float32, parameters, gradients), exact), 1e-3 * distance(exact, parameters))
    for store_type in STORES:
        assert distance(ours_after(store_type, optimizer, parameters, gradients), exact) <= allowed
    for setting in decisive:
        [default] = [field.default for field in dataclasses.fields(optimizer) if field.name == setting]
        changed: dict[str, Any] = {setting: default}
        other = dataclasses.replace(optimizer, **changed)
        assert distance(ours_after(distnet.MutexStore, other, parameters, gradients), exact) > 2 * allowed, setting
