"""Optimizers of PyTorch as a server's: each that is accepted steps as its original, and all others are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import distnet

torch = pytest.importorskip("torch")

from distnet.errors import ConfigError  # noqa: E402 - it needs torch
from distnet.frameworks.patterns import patterns_of  # noqa: E402
from distnet.torch.translation import Translation, translated  # noqa: E402

STEPS = 1000
SIZE = 64

ACCEPTED: dict[str, tuple[type, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.05}),
    "SGD, decay": (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "dampening": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    "Nesterov": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
    "Adagrad, lr_decay": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.01}),
    "RMSprop, momentum": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "momentum": 0.5}),
    "RMSprop, centered": (torch.optim.RMSprop, {"lr": 0.01, "centered": True}),
    "RMSprop, centered, momentum": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "Adam, decay": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01, "betas": (0.8, 0.99)}),
    "Adam, amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "Adam, decoupled": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW, amsgrad": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.01}),
    "NAdam, decoupled": (torch.optim.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
}
REFUSED = {
    "ASGD": torch.optim.ASGD,
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "Adamax": torch.optim.Adamax,
    "LBFGS": torch.optim.LBFGS,
    "RAdam": torch.optim.RAdam,
    "Rprop": torch.optim.Rprop,
    "SparseAdam": torch.optim.SparseAdam,
}


def one_parameter(dtype: Any = torch.float32) -> Any:
    values = np.random.default_rng(3).normal(size=SIZE)
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def translation_of(kind: Any, **attributes: Any) -> Translation:
    parameter = one_parameter()
    return translated(kind([parameter], **attributes), {id(parameter): "w"})


def rate_at(step: int, base: float) -> float:
    return base * (0.55 + 0.45 * math.cos(step / 50))


def gradient_at(step: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(step).normal(size=SIZE).astype(np.float32) + np.float32(0.3)


def original(kind: Any, attributes: dict[str, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Return the parameters after training with PyTorch's own optimizer."""
    parameter = one_parameter(dtype)
    optimizer = kind([parameter], **attributes)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate_at(step, attributes["lr"])
        parameter.grad = torch.tensor(gradient_at(step)).to(dtype)
        optimizer.step()
    values: np.ndarray[Any, Any] = parameter.detach().double().numpy()
    return values


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_translation_is_as_near_to_the_original_in_float64_as_that_is_in_float32(name: str) -> None:
    kind, attributes = ACCEPTED[name]
    start = one_parameter().detach().double().numpy()
    translation = translation_of(kind, **attributes)
    initial: dict[str, Any] = {"w": start.astype(np.float32)}
    with (
        distnet.ParameterServer(initial, semantics="sync", optimizer=translation.optimizer) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        for step in range(STEPS):
            client.push({"w": gradient_at(step)}, learning_rate=rate_at(step, attributes["lr"]))
        held: Any = server.parameters()
        ours = held["w"].astype(np.float64)
    exact = original(kind, attributes, torch.float64)
    theirs = original(kind, attributes, torch.float32)
    change = np.abs(exact - start).max()
    error, theirs_error = np.abs(ours - exact).max(), np.abs(theirs - exact).max()
    assert error < 1e-3 * change
    assert error <= 2 * theirs_error


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_without_equal_is_refused_by_its_name(name: str) -> None:
    optimizer = REFUSED[name]([one_parameter()])
    with pytest.raises(ConfigError, match=rf"{name} has no equal on a server.*update='local'"):
        translated(optimizer, {})


def test_every_optimizer_of_pytorch_is_accepted_or_refused() -> None:
    known = {kind.__name__ for kind, _ in ACCEPTED.values()} | set(REFUSED) | {"Optimizer", "Muon"}
    every = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    assert every <= known


def test_a_subclass_is_refused_because_it_may_step_otherwise() -> None:
    class Mine(torch.optim.SGD):  # type: ignore[misc, name-defined]
        pass

    with pytest.raises(ConfigError, match="Mine has no equal on a server; it is a subclass of SGD"):
        translation_of(Mine, lr=0.1)


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("attribute", ["maximize", "differentiable"])
def test_an_attribute_without_equal_is_refused_by_its_name(kind: Any, attribute: str) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.__name__}, parameter group 0: {attribute}=True has no equal"):
        translation_of(kind, lr=0.1, **{attribute: True})


def test_an_attribute_of_a_later_pytorch_is_refused_by_its_name() -> None:
    parameter = one_parameter()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.defaults["lookahead"] = optimizer.param_groups[0]["lookahead"] = 5
    with pytest.raises(ConfigError, match="lookahead=5 is nothing that this version of DistNet knows"):
        translated(optimizer, {id(parameter): "w"})


def test_how_pytorch_computes_makes_no_difference() -> None:
    plain = translation_of(torch.optim.Adam, lr=0.1).optimizer
    assert translation_of(torch.optim.Adam, lr=0.1, foreach=True).optimizer == plain
    assert translation_of(torch.optim.Adam, lr=0.1, fused=True).optimizer == plain


def test_a_scheduler_that_came_first_has_left_the_rate_to_start_from() -> None:
    parameter = one_parameter()
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert translated(optimizer, {id(parameter): "w"}).optimizer == distnet.SGD(0.5)


# ---- groups ---------------------------------------------------------------------------------------------------------
def grouped(*groups: dict[str, Any], **attributes: Any) -> tuple[Any, Translation]:
    names: dict[int, str] = {}
    said: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        parameters = [one_parameter(), one_parameter()]
        names |= {id(p): f"layer{index}.{name}" for p, name in zip(parameters, ("weight", "bias"), strict=True)}
        said.append({"params": parameters, **group})
    optimizer = torch.optim.AdamW(said, **attributes)
    return optimizer, translated(optimizer, names)


def test_groups_differ_in_rate_and_decay_by_patterns_of_names() -> None:
    optimizer, translation = grouped({"lr": 0.1}, {"lr": 0.05, "weight_decay": 0.0}, weight_decay=0.2)
    assert translation.optimizer == distnet.AdamW(0.1, weight_decay=0.2)
    other = distnet.Group(learning_rate_multiplier=0.5, weight_decay=0.0)
    assert translation.groups == {"layer1.*": other, "*": distnet.Group()}
    assert translation.learning_rate(optimizer) == pytest.approx(0.1)


def test_rates_that_change_alike_are_one_number() -> None:
    optimizer, translation = grouped({"lr": 0.1}, {"lr": 0.05})
    for group in optimizer.param_groups:
        group["lr"] *= 0.3
    assert translation.learning_rate(optimizer) == pytest.approx(0.03)


def test_rates_that_drift_apart_by_rounding_are_one_number() -> None:
    optimizer, translation = grouped({"lr": 0.1}, {"lr": 0.05})
    optimizer.param_groups[1]["lr"] *= 1 + 5e-11  # as after many steps of a scheduler; a push names few groups
    assert translation.learning_rate(optimizer) == pytest.approx(0.1)


def test_rates_that_part_are_said_for_each_group() -> None:
    optimizer, translation = grouped({"lr": 0.1}, {"lr": 0.05})
    optimizer.param_groups[1]["lr"] = 0.2
    rates = translation.learning_rate(optimizer)
    assert isinstance(rates, dict)
    assert rates == pytest.approx({"layer1.*": 0.4, "*": 0.1})


def test_groups_may_have_settings_of_their_own() -> None:
    _, translation = grouped({}, {"betas": (0.5, 0.9), "eps": 1e-3}, lr=0.1)
    assert translation.groups["layer1.*"].settings == {"betas": (0.5, 0.9), "eps": 1e-3}


@pytest.mark.parametrize("momenta", [(0.9, 0.0), (0.0, 0.9)])
def test_a_group_without_momentum_is_not_dampened(momenta: tuple[float, float]) -> None:
    parameters = [one_parameter(), one_parameter()]
    groups = [{"params": [p], "momentum": momentum} for p, momentum in zip(parameters, momenta, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1, dampening=0.5)
    translation = translated(optimizer, {id(p): f"w{index}" for index, p in enumerate(parameters)})
    initial = {f"w{index}": p.detach().numpy().copy() for index, p in enumerate(parameters)}
    with (
        distnet.ParameterServer(
            initial, semantics="sync", optimizer=translation.optimizer, groups=translation.groups
        ) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        for step in range(3):
            held: Any = client.push_pull(dict.fromkeys(initial, gradient_at(step)))
            for parameter in parameters:
                parameter.grad = torch.tensor(gradient_at(step))
            optimizer.step()
        for parameter, array in zip(parameters, held.values(), strict=True):
            np.testing.assert_allclose(array, parameter.detach().numpy(), rtol=0, atol=1e-6)


def test_a_flag_that_differs_between_groups_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="parameter group 1 has amsgrad=True, and group 0 False"):
        grouped({}, {"amsgrad": True}, lr=0.1)


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["head.weight", "head.bias"], ["body.weight", "body.bias"], ["head.*"]),
        (["a.bias", "b.bias"], ["a.weight", "b.weight"], ["*.bias"]),
        (["a.bias"], ["a.weight"], ["a.bias"]),
        (["a.0.w", "a.1.w", "c"], ["b.w"], ["a.*", "c"]),
        (["list[0]", "x*"], ["list0", "xy"], ["list[[]0]", "x[*]"]),
    ],
)
def test_patterns_match_their_names_and_no_others(names: list[str], others: list[str], expected: list[str]) -> None:
    assert patterns_of(names, others) == expected
