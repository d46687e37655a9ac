"""An optimizer of Keras as one of DistNet's: exactly, or not at all.

Each optimizer that a server knows has a line in a table of attributes. An attribute of a configuration that is in no
table is refused by its name, so an optimizer of a later Keras is never translated to something that only resembles it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from distnet import optimizers
from distnet.errors import ConfigError
from distnet.frameworks.patterns import patterns_of
from distnet.keras.variables import number
from distnet.optimizers import Group, Optimizer

__all__ = ["Translation", "check_unchanged", "current_rate", "translated"]

Config = Mapping[str, Any]

# What the optimizer does on its worker, before a gradient leaves or after parameters have come.
_BY_THE_WORKER = frozenset(
    {
        *("clipnorm", "global_clipnorm", "clipvalue", "loss_scale_factor", "gradient_accumulation_steps"),
        *("use_ema", "ema_momentum", "name"),
    }
)
_RATE, _DECAY, _OVERWRITES = "learning_rate", "weight_decay", "ema_overwrite_frequency"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """How one of Keras's optimizers is said.

    Attributes:
        made: returns DistNet's optimizer for a configuration with its learning rate and weight decay.
        attributes: of the configuration, those that it reads.
        decays: whether the server's optimizer has decoupled weight decay, as all of Keras's have.
    """

    made: Callable[[float, float, Config], Optimizer]
    attributes: frozenset[str]
    decays: bool = True


def _sgd(rate: float, decay: float, config: Config) -> Optimizer:
    if config["momentum"] == 0:
        return optimizers.SGD(rate, weight_decay=decay, decoupled_weight_decay=decay > 0)
    return optimizers.Momentum(
        rate,
        momentum=float(config["momentum"]),
        nesterov=bool(config["nesterov"]),
        weight_decay=decay,
        velocity_holds_rate=True,
        decoupled_weight_decay=decay > 0,
    )


def _adam(rate: float, decay: float, config: Config) -> Optimizer:
    kind = optimizers.AdamW if decay else optimizers.Adam
    return kind(
        rate,
        betas=_betas(config),
        eps=float(config["epsilon"]),
        amsgrad=bool(config["amsgrad"]),
        weight_decay=decay,
        eps_before_correction=True,
    )


def _rmsprop(rate: float, decay: float, config: Config) -> Optimizer:
    momentum = float(config["momentum"])
    return optimizers.RMSProp(
        rate,
        alpha=float(config["rho"]),
        eps=float(config["epsilon"]),
        momentum=momentum,
        centered=bool(config["centered"]),
        eps_inside_root=True,
        velocity_holds_rate=momentum > 0,
    )


def _adagrad(rate: float, decay: float, config: Config) -> Optimizer:
    return optimizers.Adagrad(
        rate,
        initial_accumulator_value=float(config["initial_accumulator_value"]),
        eps=float(config["epsilon"]),
        eps_inside_root=True,
    )


def _nadam(rate: float, decay: float, config: Config) -> Optimizer:
    return optimizers.NAdam(
        rate,
        betas=_betas(config),
        eps=float(config["epsilon"]),
        weight_decay=decay,
        momentum_decay=1.0,
        decoupled_weight_decay=decay > 0,
    )


def _lion(rate: float, decay: float, config: Config) -> Optimizer:
    return optimizers.Lion(rate, betas=_betas(config), weight_decay=decay)


def _betas(config: Config) -> tuple[float, float]:
    return float(config["beta_1"]), float(config["beta_2"])


_ADAM = _Entry(made=_adam, attributes=frozenset({"beta_1", "beta_2", "epsilon", "amsgrad"}))
_TABLE: Mapping[type, _Entry] = {
    keras.optimizers.SGD: _Entry(made=_sgd, attributes=frozenset({"momentum", "nesterov"})),
    keras.optimizers.Adagrad: _Entry(
        made=_adagrad, attributes=frozenset({"initial_accumulator_value", "epsilon"}), decays=False
    ),
    keras.optimizers.RMSprop: _Entry(
        made=_rmsprop, attributes=frozenset({"rho", "momentum", "epsilon", "centered"}), decays=False
    ),
    keras.optimizers.Adam: _ADAM,
    keras.optimizers.AdamW: _ADAM,
    keras.optimizers.Nadam: _Entry(made=_nadam, attributes=frozenset({"beta_1", "beta_2", "epsilon"})),
    keras.optimizers.Lion: _Entry(made=_lion, attributes=frozenset({"beta_1", "beta_2"})),
}
_OF_A_BACKEND = "keras.src.backend."  # such as PyTorch's, whose steps of one optimizer are the same in fewer kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
    """What a server is told of one of Keras's optimizers.

    Attributes:
        optimizer: with the learning rate of the moment, which each push replaces.
        groups: those tensors that the weight decay leaves out, by patterns of their names.
    """

    optimizer: Optimizer
    groups: Mapping[str, Group]


def translated(optimizer: Any, decays: Mapping[str, bool]) -> Translation:
    """Return one of Keras's optimizers as a server takes it.

    Args:
        optimizer: of Keras; no ``LossScaleOptimizer``, but the one inside.
        decays: names of the tensors, and whether the optimizer's weight decay is for them.

    Returns:
        What the server is told.

    Raises:
        ConfigError: the optimizer, or an attribute of it that is named, has no equal.
    """
    name, entry = _entry_of(optimizer)
    config = optimizer.get_config()
    _check_config(name, entry, config)
    decay = float(config[_DECAY] or 0.0)
    if decay and not entry.decays:
        raise ConfigError(
            f"{name}: weight_decay={decay!r} has no equal on a server; expected None. Take a regularizer of the layers "
            "for it, an optimizer such as AdamW, or let this one step on each worker: update='local'"
        )
    left_out = [tensor for tensor, is_decayed in decays.items() if not is_decayed] if decay else []
    if decays and len(left_out) == len(decays):
        left_out, decay = [], 0.0
    patterns = patterns_of(left_out, [tensor for tensor in decays if tensor not in left_out], separator="/")
    made = entry.made(current_rate(optimizer), decay, config)
    return Translation(optimizer=made, groups=dict.fromkeys(patterns, Group(weight_decay=0.0)))


def check_unchanged(told: Config, config: Config) -> None:
    """Raise ConfigError where an attribute other than the learning rate has changed since the server was told."""
    for attribute, value in told.items():
        if attribute != _RATE and config.get(attribute) != value:
            raise ConfigError(
                f"the optimizer's {attribute} is {config.get(attribute)!r} now, and was {value!r} when the server was "
                "told of it; only the learning rate may change while training"
            )


def current_rate(optimizer: Any) -> float:
    """Return the learning rate that the optimizer's next step has, outside any graph."""
    return number(optimizer.learning_rate)


def _entry_of(optimizer: Any) -> tuple[str, _Entry]:
    kind = optimizer.__class__
    own = next((base for base in kind.__mro__ if base in _TABLE), None)
    if own is not None and (kind is own or kind.__module__.startswith(_OF_A_BACKEND)):
        return own.__name__, _TABLE[own]
    known = ", ".join(each.__name__ for each in _TABLE)
    reason = "" if own is None else f"; it is a subclass of {own.__name__}, and may step otherwise"
    raise ConfigError(
        f"{kind.__module__}.{kind.__name__} has no equal on a server{reason}: the equal ones are {known}. Take one of "
        "them, or let it step on each worker: update='local'"
    )


def _check_config(name: str, entry: _Entry, config: Config) -> None:
    if config.get(_OVERWRITES):
        raise ConfigError(
            f"{name}: {_OVERWRITES}={config[_OVERWRITES]!r} has no equal on a server, which would not hear of it; "
            "expected None: fit() leaves the averages in the model at its end. Or take update='local'"
        )
    known: Sequence[str] = [*entry.attributes, *_BY_THE_WORKER, _RATE, _DECAY, _OVERWRITES]
    for attribute, value in config.items():
        if attribute not in known and value not in (None, False):
            raise ConfigError(f"{name}: {attribute}={value!r} is nothing that this version of DistNet knows")
