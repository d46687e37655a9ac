"""Settings of some of a model's tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from distnet.errors import ConfigError
from distnet.optimizers.optimizer import Optimizer, engine_setting
from distnet.optimizers.table import state_meaning
from distnet.schedules import check_number

__all__ = ["Group"]

_ELSEWHERE = MappingProxyType(
    {
        "learning_rate": "learning_rate_multiplier of the group",
        "weight_decay": "weight_decay of the group beside its settings",
        "clip_value": "clip_value of the optimizer",
        "clip_norm": "clip_norm of the optimizer",
    }
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings of the tensors whose names match a pattern.

    ``ParameterServer(groups={pattern: Group(...)})`` takes them.

    Args:
        learning_rate_multiplier: what the optimizer's learning rate is multiplied by, at least 0.
        weight_decay: counts in place of the optimizer's own, at least 0. None: as the optimizer has it.
        settings: other settings of the server's optimizer by name, which count in place of its own, such as
            ``{"momentum": 0.8}``. They must not change what state it keeps: ``amsgrad``, for one, is the same for all
            parameters.

    Raises:
        ConfigError: a value that is not finite or below 0, or that is no setting. What the server's optimizer makes of
            the settings, the server says.

    Thread safety: it never changes.

    Example:
        >>> model = {name: np.zeros(1, np.float32) for name in ("dense/kernel", "dense/bias")}
        >>> groups = {"*bias": distnet.Group(learning_rate_multiplier=2.0)}
        >>> optimizer = distnet.SGD(0.5)
        >>> with distnet.ParameterServer(model, optimizer=optimizer, groups=groups) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         client.push({name: np.ones(1, np.float32) for name in model})
        ...     {name: array.tolist() for name, array in server.parameters().items()}
        {'dense/kernel': [-0.5], 'dense/bias': [-1.0]}
    """

    learning_rate_multiplier: float = 1.0
    weight_decay: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_number("Group.learning_rate_multiplier", self.learning_rate_multiplier)
        if self.weight_decay is not None:
            check_number("Group.weight_decay", self.weight_decay)
        if not isinstance(self.settings, Mapping):
            raise ConfigError(f'Group.settings is {self.settings!r}; expected a dict such as {{"momentum": 0.8}}')
        for name, place in _ELSEWHERE.items():
            if name in self.settings:
                raise ConfigError(f"Group.settings has {name}; expected {place}")
        kept = {name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()}
        object.__setattr__(self, "settings", kept)

    def engine_settings(self, optimizer: Optimizer) -> dict[str, float]:
        """Return the group's own settings of an optimizer as the engine takes them.

        Args:
            optimizer: the server's.

        Returns:
            Numbers by name.

        Raises:
            ConfigError: it has no such setting, the value is out of range, or it decides what state is kept.
        """
        known = [field.name for field in dataclasses.fields(optimizer) if field.name not in _ELSEWHERE]
        for name in self.settings:
            if name not in known:
                expected = f"expected some of {', '.join(known)}" if known else "it has none that a group can have"
                raise ConfigError(
                    f"a group's settings have {name!r}, and {optimizer.name} has no such setting; {expected}"
                )
        if self.weight_decay is not None and not hasattr(optimizer, "weight_decay"):
            raise ConfigError(f"a group has a weight_decay, and {optimizer.name} has none")
        changed = dataclasses.replace(optimizer, **self.settings)
        for what in (_state_meaning, lambda of: getattr(of, "initial_accumulator_value", 0.0)):
            if what(changed) != what(optimizer):
                raise ConfigError(
                    f"a group's settings {dict(self.settings)} change what state {optimizer.name} keeps or where it "
                    "starts; give them to the optimizer, for all parameters"
                )
        return {key: v for name in self.settings for key, v in engine_setting(name, getattr(changed, name)).items()}


def _state_meaning(optimizer: Optimizer) -> tuple[Any, ...]:
    return state_meaning(optimizer.to_spec())
