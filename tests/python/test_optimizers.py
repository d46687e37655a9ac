"""Optimizers and schedules as values: what they accept, and that their specifications lose nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from distnet import ParameterServer
from distnet.errors import ConfigError
from distnet.optimizers import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    CosineDecay,
    ExponentialDecay,
    Group,
    LearningRate,
    Lion,
    Momentum,
    NAdam,
    Optimizer,
    OuterNesterov,
    PiecewiseConstant,
    RMSProp,
    Warmup,
    from_spec,
)

RATES: list[LearningRate] = [
    0.0,
    0.1,
    1,
    ExponentialDecay(0.1, 0.5, updates=350, staircase=True),
    ExponentialDecay(0.1, 0.5, updates=0.5),
    PiecewiseConstant([10, 20], [1.0, 0.1, 0.01]),
    PiecewiseConstant([], [0.3]),
    CosineDecay(0.1, updates=1000, final=0.001),
    Warmup(5, then=0.1),
    Warmup(5, then=CosineDecay(0.1, updates=1000), start=0.01),
]
NOT_RATES: list[Any] = [-0.1, math.nan, math.inf, "0.1", None, True, [0.1]]


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("rate", RATES, ids=repr)
def test_a_specification_survives_json_and_comes_back_as_the_same_optimizer(
    kind: type[Optimizer], rate: LearningRate
) -> None:
    optimizer = kind(rate, clip_value=0.5, clip_norm=2.0)
    assert from_spec(json.loads(json.dumps(optimizer.to_spec()))) == optimizer
    assert from_spec(kind(rate).to_spec()) == kind(rate)


def test_a_specification_has_exactly_the_fields_of_the_engine() -> None:
    spec = AdamW(Warmup(5, then=0.1, start=0.01), betas=(0.8, 0.9), clip_norm=1.0).to_spec()
    assert spec == {
        "name": "adamw",
        "settings": {"beta1": 0.8, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.01},
        "schedule": {
            "kind": "constant",
            "learning_rate": 0.1,
            "factor": 1.0,
            "period_updates": 1.0,
            "staircase": False,
            "final_learning_rate": 0.0,
            "boundaries": [],
            "values": [],
            "warmup_updates": 5,
            "warmup_learning_rate": 0.01,
        },
        "clip_value": 0.0,
        "clip_norm": 1.0,
    }


def test_settings_left_out_of_a_specification_have_their_defaults() -> None:
    assert from_spec({"name": "adam"}) == Adam()
    assert from_spec({"name": "adam", "settings": {"beta1": 0.5}}) == Adam(betas=(0.5, 0.999))
    assert from_spec({"name": "momentum", "settings": {"nesterov": 1.0}}) == Momentum(nesterov=True)


def test_defaults_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    parameter = [torch.zeros(1)]
    for ours, theirs in [
        (SGD(), torch.optim.SGD(parameter)),
        (Adagrad(), torch.optim.Adagrad(parameter)),
        (RMSProp(), torch.optim.RMSprop(parameter)),
        (Adam(), torch.optim.Adam(parameter)),
        (AdamW(), torch.optim.AdamW(parameter)),
        (NAdam(), torch.optim.NAdam(parameter)),
    ]:
        named_as_in_torch = {"learning_rate": "lr", "learning_rate_decay": "lr_decay"}
        of_others = {"eps_inside_root", "eps_before_correction", "velocity_holds_rate"}
        if type(ours) is SGD:
            of_others.add("decoupled_weight_decay")
        for field in dataclasses.fields(ours):
            if field.name not in ("clip_value", "clip_norm", *of_others):
                expected = theirs.defaults[named_as_in_torch.get(field.name, field.name)]
                assert getattr(ours, field.name) == expected, (ours, field.name)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("rate", NOT_RATES, ids=repr)
def test_what_is_no_rate_is_refused_by_name(kind: type[Optimizer], rate: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.learning_rate"):
        kind(rate)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SGD, {"weight_decay": -1.0}),
        (SGD, {"clip_value": 0.0}),
        (SGD, {"clip_norm": -1.0}),
        (SGD, {"clip_norm": math.inf}),
        (Momentum, {"momentum": math.nan}),
        (Momentum, {"nesterov": 1}),
        (Adagrad, {"eps": -1e-9}),
        (Adagrad, {"initial_accumulator_value": -1}),
        (RMSProp, {"alpha": 1.0}),
        (Adam, {"betas": (0.9, 1.0)}),
        (Adam, {"betas": (0.9,)}),
        (AdamW, {"weight_decay": "0.1"}),
        (Adam, {"betas": 0.9}),
        (Adam, {"amsgrad": 1.0}),
        (Momentum, {"dampening": -0.1}),
        (NAdam, {"betas": (1.0, 0.9)}),
        (NAdam, {"momentum_decay": -1.0}),
        (Lion, {"betas": (0.9, 0.99, 0.999)}),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(kind: type[Optimizer], settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} is"):
        kind(0.1, **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialDecay(0.1, 0.0, updates=10),
        lambda: ExponentialDecay(0.1, 0.5, updates=0),
        lambda: ExponentialDecay(0.1, 0.5, updates=1, staircase=1),  # type: ignore[arg-type]
        lambda: CosineDecay(0.1, updates=-1),
        lambda: CosineDecay(0.1, updates=1, final=math.nan),
        lambda: PiecewiseConstant([1, 2], [0.1, 0.2]),
        lambda: PiecewiseConstant([2, 2], [0.1, 0.2, 0.3]),
        lambda: PiecewiseConstant([0.5], [0.1, 0.2]),  # type: ignore[list-item]
        lambda: PiecewiseConstant([-1], [0.1, 0.2]),
        lambda: Warmup(-1, then=0.1),
        lambda: Warmup(1.5, then=0.1),  # type: ignore[arg-type]
        lambda: Warmup(1, then=Warmup(1, then=0.1)),
        lambda: Warmup(1, then=-0.1),
        lambda: Group(learning_rate_multiplier=-1.0),
        lambda: Group(weight_decay=math.inf),
        lambda: Group(settings=[("momentum", 0.8)]),  # type: ignore[arg-type]
        lambda: Group(settings={"weight_decay": 0.1}),
        lambda: Group(settings={"learning_rate": 0.1}),
        lambda: Momentum(nesterov=True, dampening=0.1),
    ],
)
def test_what_is_no_schedule_and_no_group_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "sdg"}, "unknown optimizer 'sdg'; expected one of sgd, momentum"),
        ({}, "unknown optimizer None"),
        ({"name": "sgd", "settings": {"momentum": 0.9}}, "'sgd' has no setting momentum"),
        ({"name": "sgd", "settings": {"learning_rate": 0.9}}, "'sgd' has no setting learning_rate"),
        ({"name": "sgd", "rate": 0.1}, "has no rate"),
        ({"name": "sgd", "schedule": {"kind": "linear"}}, "schedule kind 'linear'"),
        ({"name": "sgd", "schedule": {"kid": "constant"}}, "a schedule has no kid"),
        ({"name": "sgd", "schedule": {"learning_rate": "fast"}}, "learning_rate is 'fast'"),
    ],
)
def test_a_broken_specification_is_refused_with_a_reason(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_spec(spec)


def test_what_a_dialect_leaves_at_its_default_is_not_in_a_specification() -> None:
    assert Adam().to_spec()["settings"] == {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    assert SGD(decoupled_weight_decay=True).to_spec()["settings"] == {
        "weight_decay": 0.0,
        "decoupled_weight_decay": 1.0,
    }


@pytest.mark.parametrize(
    ("optimizer", "settings", "message"),
    [
        (SGD(), {"momentum": 0.9}, "a group's settings have 'momentum', and sgd has no such setting"),
        (OuterNesterov(), {"nesterov": True}, "expected some of momentum"),
        (Momentum(), {"momentum": -1.0}, r"Momentum\.momentum is -1\.0"),
        (Momentum(dampening=0.5), {"nesterov": True}, r"Momentum\.dampening is 0\.5; expected 0 with nesterov"),
        (Momentum(), {"velocity_holds_rate": True}, "change what state momentum keeps"),
        (Adam(), {"amsgrad": True}, r"\{'amsgrad': True\} change what state adam keeps"),
        (RMSProp(), {"momentum": 0.9}, "change what state rmsprop keeps"),
        (Adagrad(), {"initial_accumulator_value": 0.1}, "change what state adagrad keeps or where it starts"),
    ],
)
def test_settings_of_a_group_are_checked_where_the_optimizer_is_known(
    optimizer: Optimizer, settings: dict[str, Any], message: str
) -> None:
    group = Group(settings=settings)
    with pytest.raises(ConfigError, match=message):
        group.engine_settings(optimizer)
    with pytest.raises(ConfigError, match=r"groups\['\*bias'\]: .*" + message):
        ParameterServer([np.zeros(1, np.float32)], optimizer=optimizer, groups={"*bias": group})


def test_a_group_may_have_any_other_setting() -> None:
    assert Group(settings={"betas": [0.5, 0.25], "eps": 1}).engine_settings(Adam()) == {
        "beta1": 0.5,
        "beta2": 0.25,
        "eps": 1.0,
    }
    assert Group(settings={"nesterov": True}).engine_settings(Momentum()) == {"nesterov": 1.0}
    with pytest.raises(ConfigError, match="a group has a weight_decay, and outer_nesterov has none"):
        Group(weight_decay=0.1).engine_settings(OuterNesterov())


def test_optimizers_are_frozen_and_compare_by_value() -> None:
    optimizer = Momentum(0.1, nesterov=True)
    assert optimizer == Momentum(0.1, 0.9, True)
    assert hash(optimizer) == hash(Momentum(0.1, 0.9, True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.momentum = 0.5  # type: ignore[misc]
    assert dataclasses.replace(optimizer, momentum=0.5) == Momentum(0.1, 0.5, True)


def test_the_table_holds_every_optimizer_under_its_own_name() -> None:
    names = ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "nadam", "lion", "outer_nesterov"]
    assert list(OPTIMIZERS) == names
    assert all(kind.name == name for name, kind in OPTIMIZERS.items())


numbers = st.floats(0.0, 1e6, allow_nan=False)
positive = st.floats(1e-6, 1e6, allow_nan=False)
schedules = st.one_of(
    numbers,
    st.builds(ExponentialDecay, numbers, positive, positive, st.booleans()),
    st.builds(CosineDecay, numbers, positive, numbers),
    st.lists(st.integers(0, 10**9), unique=True, max_size=5).flatmap(
        lambda boundaries: st.lists(numbers, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1).map(
            lambda rates: PiecewiseConstant(sorted(boundaries), rates)
        )
    ),
)
rates = st.one_of(schedules, st.builds(Warmup, st.integers(1, 10**9), schedules, numbers))


@given(rate=rates, kind=st.sampled_from(list(OPTIMIZERS.values())), clip=st.none() | positive, weight_decay=numbers)
def test_any_optimizer_survives_its_specification(
    rate: LearningRate, kind: type[Optimizer], clip: float | None, weight_decay: float
) -> None:
    optimizer: Any = kind(rate, clip_value=clip, clip_norm=clip)
    if kind is not OuterNesterov:
        optimizer = dataclasses.replace(optimizer, weight_decay=weight_decay)
    assert from_spec(json.loads(json.dumps(optimizer.to_spec()))) == optimizer
