"""All optimizers by name, and the way back from their plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from distnet.errors import ConfigError
from distnet.optimizers.adagrad import Adagrad
from distnet.optimizers.adam import Adam, AdamW, NAdam
from distnet.optimizers.gradient_descent import SGD, Momentum
from distnet.optimizers.lion import Lion
from distnet.optimizers.optimizer import SHARED, Optimizer
from distnet.optimizers.outer_nesterov import OuterNesterov
from distnet.optimizers.rmsprop import RMSProp
from distnet.schedules import learning_rate_from_spec

__all__ = ["OPTIMIZERS", "from_spec", "state_meaning", "state_names", "state_vectors"]

OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        optimizer.name: optimizer
        for optimizer in (SGD, Momentum, Adagrad, RMSProp, Adam, AdamW, NAdam, Lion, OuterNesterov)
    }
)


def from_spec(spec: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer whose :meth:`Optimizer.to_spec` this is.

    Args:
        spec: what that returned; settings left out have their defaults.

    Returns:
        An optimizer that equals the one it was made of.

    Raises:
        ConfigError: an unknown optimizer or setting, or a value out of range.

    Example:
        >>> optimizer = distnet.Adam(distnet.CosineDecay(0.1, updates=100))
        >>> distnet.optimizers.from_spec(optimizer.to_spec()) == optimizer
        True
    """
    unknown = sorted(set(spec) - {"name", "settings", "schedule", "clip_value", "clip_norm"})
    if unknown:
        raise ConfigError(f"an optimizer's specification has no {', '.join(unknown)}")
    kind = OPTIMIZERS.get(spec.get("name", ""))
    if kind is None:
        raise ConfigError(f"unknown optimizer {spec.get('name')!r}; expected one of {', '.join(OPTIMIZERS)}")
    settings: dict[str, Any] = dict(spec.get("settings", {}))
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in SHARED}
    if "betas" in fields and ("beta1" in settings or "beta2" in settings):
        beta1, beta2 = kind.betas  # type: ignore[attr-defined]  # a dataclass has its fields' defaults
        settings["betas"] = (settings.pop("beta1", beta1), settings.pop("beta2", beta2))
    for name, field in fields.items():
        if field.type in ("bool", bool) and settings.get(name) in (0.0, 1.0):
            settings[name] = bool(settings[name])
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise ConfigError(
            f"optimizer {kind.name!r} has no setting {', '.join(unknown)}; expected {', '.join(sorted(fields))}"
        )
    if "schedule" in spec:
        settings["learning_rate"] = learning_rate_from_spec(spec["schedule"])
    return kind(clip_value=spec.get("clip_value") or None, clip_norm=spec.get("clip_norm") or None, **settings)


def state_vectors(optimizer: Optimizer) -> int:
    """Return how many state vectors an optimizer keeps.

    Args:
        optimizer: any.

    Returns:
        0 for SGD, 2 for Adam, AdamW and NAdam, 1 for the others; one more each for a momentum of RMSProp, ``centered``
        and ``amsgrad``.
    """
    return len(optimizer._kept(optimizer.to_spec()["settings"]))


def state_names(spec: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return names for so many state vectors of the optimizer whose :meth:`Optimizer.to_spec` this is.

    Args:
        spec: kind, settings and schedule of the optimizer as plain values.
        count: how many names are needed.

    Returns:
        PyTorch's names, which are ``momentum_buffer``, ``sum``, ``square_avg``, ``grad_avg``, ``exp_avg``,
        ``exp_avg_sq`` and ``max_exp_avg_sq``; beyond those, and for an optimizer that is not known here, ``state0``,
        ``state1`` and so on.

    Example:
        >>> distnet.optimizers.state_names(distnet.Adam().to_spec(), 2)
        ('exp_avg', 'exp_avg_sq')
    """
    kind = OPTIMIZERS.get(spec.get("name", ""))
    known = kind._kept(spec.get("settings", {}))[:count] if kind is not None else ()
    return (*known, *(f"state{index}" for index in range(len(known), count)))


def state_meaning(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells apart the state of optimizers, given by their :meth:`Optimizer.to_spec`.

    Args:
        spec: kind, settings and schedule of the optimizer as plain values.

    Returns:
        Kind, names of the state vectors, and whether a velocity holds the rate; equal where one can go on from the
        other's state.
    """
    settings = spec.get("settings", {})
    kind = OPTIMIZERS.get(spec.get("name", ""))
    kept = () if kind is None else kind._kept(settings)
    return spec.get("name"), kept, "momentum_buffer" in kept and bool(settings.get("velocity_holds_rate"))
