"""An optimizer of PyTorch as one of DistNet's: exactly, or not at all.

Each optimizer that a server knows has a line in a table of attributes: what an attribute is called there, what it must
be to have an equal, and what makes no difference to the values. An attribute that is in none of these is refused by its
name, so an optimizer of a later PyTorch is never translated to something that only resembles it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distnet import optimizers
from distnet.errors import ConfigError
from distnet.frameworks.patterns import patterns_of
from distnet.optimizers import Group, Optimizer

__all__ = ["Translation", "translated"]

# What only says how PyTorch computes.
_WITHOUT_MEANING = frozenset({"foreach", "fused", "capturable"})
# What has no equal: the value that it must have.
_MUST_BE: Mapping[str, Any] = {"maximize": False, "differentiable": False}
_LEARNING_RATE, _DECAY = "lr", "weight_decay"
# What schedulers that multiply a rate by one factor a step part the groups by, relatively: 2e-12 in 200 000 steps of
# PyTorch's LinearLR and PolynomialLR. Float32 sees no difference below 6e-8.
_DRIFT = 1e-9
_REST = "*"  # what no other pattern matches: the first parameter group

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """How one of PyTorch's optimizers is said.

    Attributes:
        kind: returns the name of DistNet's optimizer, for the parameter groups.
        settings: PyTorch's name of an attribute, and ours; none where the kind says it.
    """

    kind: Callable[[Sequence[Settings]], str]
    settings: Mapping[str, str]


def _named(name: str) -> Callable[[Sequence[Settings]], str]:
    return lambda groups: name


def _sgd(groups: Sequence[Settings]) -> str:
    return "momentum" if any(group["momentum"] != 0 for group in groups) else "sgd"


def _adam(groups: Sequence[Settings]) -> str:
    decoupled = [bool(group.get("decoupled_weight_decay", False)) for group in groups]
    _check_same("decoupled_weight_decay", decoupled)
    return "adamw" if decoupled[0] else "adam"


_ADAM = _Entry(
    kind=_adam,
    settings={"betas": "betas", "eps": "eps", "amsgrad": "amsgrad", "decoupled_weight_decay": ""},
)
_TABLE: Mapping[type, _Entry] = {
    torch.optim.SGD: _Entry(
        kind=_sgd, settings={"momentum": "momentum", "nesterov": "nesterov", "dampening": "dampening"}
    ),
    torch.optim.Adagrad: _Entry(
        kind=_named("adagrad"),
        settings={
            "lr_decay": "learning_rate_decay",
            "eps": "eps",
            "initial_accumulator_value": "initial_accumulator_value",
        },
    ),
    torch.optim.RMSprop: _Entry(
        kind=_named("rmsprop"),
        settings={"alpha": "alpha", "eps": "eps", "momentum": "momentum", "centered": "centered"},
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _Entry(
        kind=_named("nadam"),
        settings={
            "betas": "betas",
            "eps": "eps",
            "momentum_decay": "momentum_decay",
            "decoupled_weight_decay": "decoupled_weight_decay",
        },
    ),
}
# Attributes that stand for nothing where others are as said: SGD without momentum has no velocity to dampen.
_UNUSED_BY: Mapping[str, frozenset[str]] = {"sgd": frozenset({"momentum", "nesterov", "dampening"})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
    """What a server is told of one of PyTorch's optimizers.

    Attributes:
        optimizer: with the learning rate of the first parameter group, which each push replaces.
        groups: settings of the tensors of each parameter group, where there are several, by patterns of their names;
            the first of them comes last.
        patterns: those of each parameter group.
    """

    optimizer: Optimizer
    groups: Mapping[str, Group]
    patterns: Sequence[Sequence[str]]
    _fixed: Sequence[Settings]

    @property
    def moves_on_zeros(self) -> bool:
        """Whether a gradient of zeros is another thing than none, which PyTorch passes over."""
        decays = any(group[_DECAY] != 0 for group in self._fixed)
        plain = isinstance(self.optimizer, optimizers.SGD | optimizers.Adagrad)
        return decays or not plain or getattr(self.optimizer, "learning_rate_decay", 0.0) != 0.0

    def check_unchanged(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ConfigError where an attribute other than the learning rate is not what the server was told."""
        groups = optimizer.param_groups
        if len(groups) != len(self._fixed):
            raise ConfigError(
                f"the optimizer has {len(groups)} parameter groups now, and the server was told of "
                f"{len(self._fixed)}: add_param_group() comes before DistributedOptimizer()"
            )
        for index, (group, fixed) in enumerate(zip(groups, self._fixed, strict=True)):
            for name, value in fixed.items():
                if group[name] != value:
                    raise ConfigError(
                        f"parameter group {index}: {name} is {group[name]!r} now, and was {value!r} when the server "
                        f"was told of it; only the learning rate may change while training{_remedy(name)}"
                    )

    def learning_rate(self, optimizer: torch.optim.Optimizer) -> float | dict[str, float]:
        """Return what a push says of the learning rate: the groups' multipliers are taken out of it.

        A number where one does for all groups; else one for each pattern.
        """
        rates = [float(group[_LEARNING_RATE]) for group in optimizer.param_groups]
        multipliers = [self._multiplier(index) for index in range(len(rates))]
        bases = [rate / multiplier for rate, multiplier in zip(rates, multipliers, strict=True)]
        if all(abs(base - bases[0]) <= _DRIFT * abs(bases[0]) for base in bases):
            return bases[0]
        return {pattern: base for own, base in zip(self.patterns, bases, strict=True) for pattern in own}

    def _multiplier(self, index: int) -> float:
        patterns = self.patterns[index]
        return self.groups[patterns[0]].learning_rate_multiplier if patterns else 1.0


def translated(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Translation:
    """Return one of PyTorch's optimizers as a server takes it.

    Args:
        optimizer: as it was made, or as a scheduler has left it.
        names: of the tensors that travel, by the ``id`` of their parameter.

    Returns:
        What the server is told.

    Raises:
        ConfigError: the optimizer, or an attribute of it that is named, has no equal.
    """
    kind = _kind_of(optimizer)
    entry = _TABLE[kind]
    groups = optimizer.param_groups
    for index, group in enumerate(groups):
        _check_group(kind, entry, index, group, optimizer.defaults)
    name = entry.kind(groups)
    first, *others = (_settings(entry, name, group) for group in groups)
    rates = [float(group.get("initial_lr", group[_LEARNING_RATE])) for group in groups]
    made = _made(name, first, rates[0])
    inside = [[names[id(p)] for p in group["params"] if id(p) in names] for group in groups]
    patterns: list[list[str]] = [[_REST] if others else []]
    said: dict[str, Group] = {}
    for index, settings in enumerate(others, start=1):
        own = patterns_of(
            inside[index], [name for place, group in enumerate(inside) for name in group if place != index]
        )
        group = _group(made, first, settings, rates[0], rates[index], index)
        patterns.append(own)
        said |= dict.fromkeys(own, group)
    if others:
        said[_REST] = Group()  # which changes nothing; a push can name a rate for it
    fixed = [{key: group[key] for key in (*entry.settings, *_MUST_BE, _DECAY) if key in group} for group in groups]
    return Translation(optimizer=made, groups=said, patterns=patterns, _fixed=fixed)


def _kind_of(optimizer: torch.optim.Optimizer) -> type:
    kind = type(optimizer)
    if kind in _TABLE:
        return kind
    known = ", ".join(each.__name__ for each in _TABLE)
    own = next((base for base in _TABLE if issubclass(kind, base)), None)
    reason = "" if own is None else f"; it is a subclass of {own.__name__}, and may step otherwise"
    raise ConfigError(
        f"{kind.__module__}.{kind.__name__} has no equal on a server{reason}: the equal ones are {known}. Take one of "
        "them, or let it step on each worker: update='local'"
    )


def _check_group(kind: type, entry: _Entry, index: int, group: Settings, defaults: Settings) -> None:
    where = f"{kind.__name__}, parameter group {index}"
    for name in defaults:
        value = group[name]
        if name in _MUST_BE:
            if value != _MUST_BE[name]:
                raise ConfigError(f"{where}: {name}={value!r} has no equal on a server; expected {_MUST_BE[name]!r}")
        elif name not in {*entry.settings, *_WITHOUT_MEANING, _LEARNING_RATE, _DECAY} and value not in (None, False):
            raise ConfigError(f"{where}: {name}={value!r} is nothing that this version of DistNet knows")


def _settings(entry: _Entry, name: str, group: Settings) -> Settings:
    """Return a group's attributes under our names."""
    unused = _UNUSED_BY.get(name, frozenset())
    settings = {ours: _plain(group[theirs]) for theirs, ours in entry.settings.items() if ours and theirs not in unused}
    if name == "momentum" and settings["momentum"] == 0:
        settings["dampening"] = 0.0  # PyTorch dampens a velocity only, and this group has none
    return {**settings, _DECAY: _plain(group[_DECAY])}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(float(each) for each in value)
    return value if isinstance(value, bool) else float(value)


def _made(name: str, settings: Settings, rate: float) -> Optimizer:
    kind = optimizers.OPTIMIZERS.get(name)
    fields = {} if kind is None else {field.name: field.default for field in dataclasses.fields(kind)}
    unknown = [key for key, value in settings.items() if key not in fields and value]
    if kind is None or unknown:
        what = f"{name} with {unknown[0]}" if unknown else name
        raise ConfigError(f"this version of DistNet has no {what}")
    return kind(rate, **{key: value for key, value in settings.items() if key in fields})


def _group(made: Optimizer, first: Settings, own: Settings, base: float, rate: float, index: int) -> Group:
    """Return what a parameter group has other than the first one."""
    differing: Settings = {}
    for name, value in own.items():
        if name == _DECAY or value == first[name]:
            continue
        if isinstance(value, bool):
            raise ConfigError(
                f"parameter group {index} has {name}={value!r}, and group 0 {first[name]!r}; on a server this is the "
                "same for all groups"
            )
        differing[name] = value
    multiplier = rate / base if base > 0 and rate > 0 else 1.0
    return Group(learning_rate_multiplier=multiplier, weight_decay=own[_DECAY], settings=differing)


def _check_same(name: str, values: Sequence[Any]) -> None:
    if len(set(values)) > 1:
        raise ConfigError(f"the parameter groups differ in {name}; on a server this is the same for all groups")


def _remedy(name: str) -> str:
    return ": give the scheduler cycle_momentum=False" if name in ("momentum", "betas") else ""
