"""Each optimizer against the same one of PyTorch, over thousands of random steps, in both stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.optimizers import OPTIMIZERS, LearningRate, Optimizer

torch = pytest.importorskip("torch")

STEPS = 3000
SIZE = 1031
STORES = [distnet.MutexStore, distnet.LockFreeStore]

# Our settings, and the same in PyTorch's words. Dialects are compared in
# test_optimizer_dialects.py.
CASES: list[tuple[str, dict[str, Any], Callable[..., Any], dict[str, Any]]] = [
    ("sgd", {}, torch.optim.SGD, {}),
    ("sgd", {"weight_decay": 0.01}, torch.optim.SGD, {"weight_decay": 0.01}),
    ("momentum", {}, torch.optim.SGD, {"momentum": 0.9}),
    (
        "momentum",
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    ),
    ("adagrad", {}, torch.optim.Adagrad, {}),
    (
        "adagrad",
        {"learning_rate_decay": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-6, "weight_decay": 0.01},
        torch.optim.Adagrad,
        {"lr_decay": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-6, "weight_decay": 0.01},
    ),
    ("rmsprop", {}, torch.optim.RMSprop, {}),
    (
        "rmsprop",
        {"alpha": 0.9, "momentum": 0.5, "eps": 1e-6, "weight_decay": 0.01},
        torch.optim.RMSprop,
        {"alpha": 0.9, "momentum": 0.5, "eps": 1e-6, "weight_decay": 0.01},
    ),
    ("adam", {}, torch.optim.Adam, {}),
    (
        "adam",
        {"betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.01},
        torch.optim.Adam,
        {"betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.01},
    ),
    ("adamw", {}, torch.optim.AdamW, {}),
    ("adamw", {"weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
]
RATE = 0.01


def random_steps(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Return starting parameters, and gradients of very different sizes with a common drift, as training has them."""
    random = np.random.default_rng(20171201)
    parameters = random.normal(size=SIZE).astype(np.float32)
    scales = 10.0 ** random.uniform(-4, 1, size=SIZE)
    gradients = (random.normal(size=(steps, SIZE)) + 0.1) * scales
    return parameters, gradients.astype(np.float32)


def torch_steps(make: Callable[..., Any], parameters: np.ndarray, gradients: np.ndarray, rates: Any) -> np.ndarray:
    """Return the parameters after PyTorch's own steps."""
    parameter = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
    optimizer = make([parameter])
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return np.asarray(parameter.detach().numpy())


def store_steps(store_type: Any, optimizer: Optimizer, parameters: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return the parameters after the store's steps."""
    store = store_type(parameters, optimizer)
    for gradient in gradients:
        store.apply(gradient)
    assert store.version == len(gradients)
    out = np.empty_like(parameters)
    store.read(out)
    return out


def assert_agree(ours: np.ndarray, theirs: np.ndarray, moved: np.ndarray) -> None:
    """Hold the difference against float32 rounding of the numbers that were added up to get here."""
    scale = np.maximum(np.maximum(np.abs(theirs), np.abs(moved)), 1.0)
    # Each step may round by half a unit in the last place in either direction, and PyTorch fuses some multiplications
    # with additions. Over all steps 2 to 5 units are seen; a formula or a constant that differs shows as thousands.
    allowed = 32 * np.finfo(np.float32).eps
    assert np.isfinite(ours).all()
    assert np.max(np.abs(ours - theirs) / scale) < allowed


@pytest.mark.parametrize("store_type", STORES)
@pytest.mark.parametrize(("name", "settings", "torch_optimizer", "torch_settings"), CASES, ids=lambda value: str(value))
def test_an_optimizer_agrees_with_pytorch_to_float32_rounding(
    store_type: Any, name: str, settings: dict[str, Any], torch_optimizer: Any, torch_settings: dict[str, Any]
) -> None:
    parameters, gradients = random_steps()
    ours = store_steps(store_type, OPTIMIZERS[name](RATE, **settings), parameters, gradients)
    theirs = torch_steps(
        lambda p: torch_optimizer(p, lr=RATE, **torch_settings), parameters, gradients, [RATE] * len(gradients)
    )
    assert np.max(np.abs(theirs - parameters)) > 0.01, "the steps must lead somewhere"
    assert_agree(ours, theirs, theirs - parameters)


def test_every_optimizer_of_the_table_is_compared() -> None:
    # PyTorch has no Lion, and its float32 NAdam is further from the formula than this comparison allows:
    # test_optimizer_dialects.py holds both against float64.
    assert {name for name, *_ in CASES} == set(OPTIMIZERS) - {"nadam", "lion", "outer_nesterov"}


def torch_rates(schedule: Callable[[Any], Any], rate: float, updates: int) -> list[float]:
    """Return the rates of one of PyTorch's own schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


SCHEDULES: list[tuple[LearningRate, Callable[[Any], Any]]] = [
    (
        distnet.ExponentialDecay(0.1, 0.5, updates=10, staircase=True),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5),
    ),
    (
        distnet.ExponentialDecay(0.1, 0.97, updates=1),
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97),
    ),
    (
        distnet.PiecewiseConstant([7, 30], [0.1, 0.01, 0.001]),
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [7, 30], gamma=0.1),
    ),
    (
        distnet.CosineDecay(0.1, updates=60, final=0.001),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60, eta_min=0.001),
    ),
    (
        distnet.Warmup(20, then=0.1, start=0.01),
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20),
    ),
]


@pytest.mark.parametrize("store_type", STORES)
@pytest.mark.parametrize(("rate", "schedule"), SCHEDULES, ids=lambda value: type(value).__name__)
def test_a_schedule_has_pytorchs_rates_from_the_first_update_on(
    store_type: Any, rate: LearningRate, schedule: Any
) -> None:
    # A gradient of -1 in SGD adds each update's rate to the parameter.
    parameters = np.zeros(1, np.float32)
    store = store_type(parameters, distnet.SGD(rate))
    sums = np.cumsum(torch_rates(schedule, 0.1, 60))
    for expected in sums:
        store.apply(np.full(1, -1.0, np.float32))
        store.read(parameters)
        assert parameters[0] == pytest.approx(expected, rel=1e-5)
