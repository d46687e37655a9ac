"""What all optimizers share: the learning rate, clipping, and how they are written as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from distnet.errors import ConfigError
from distnet.schedules import LearningRate, check_flag, check_learning_rate, check_number, learning_rate_to_spec

__all__ = ["DIALECT", "SHARED", "Optimizer", "checked_betas", "engine_setting"]

# The metadata of fields that a specification leaves out at their defaults, so that earlier versions read it as well.
DIALECT = MappingProxyType({"dialect": True})
SHARED = ("learning_rate", "clip_value", "clip_norm")  # fields that are no settings of one optimizer


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimizers share: a learning rate and two ways to clip.

    Args:
        learning_rate: a finite float of at least 0, or a schedule.
        clip_value: on the server, each element of a gradient is clamped to plus or minus this, above 0. None: not.
        clip_norm: on the client, a gradient whose Euclidean norm, over all tensors and shards, exceeds this is scaled
            down to it; above 0. None: not.

    Attributes:
        name: what settings and checkpoints call the optimizer, such as ``"sgd"``.
        state_names: names of all state vectors that it may keep, in order, as PyTorch has them.

    Raises:
        ConfigError: a value that is not finite, of another type, or out of range.

    Thread safety: it never changes.

    Example:
        >>> optimizer = distnet.SGD(0.5, clip_value=1.0)
        >>> store = distnet.MutexStore(np.zeros(2, np.float32), optimizer)
        >>> store.apply(np.array([0.5, -100.0], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.tolist()
        (1, [-0.25, 0.5])
    """

    name: ClassVar[str] = ""
    state_names: ClassVar[tuple[str, ...]] = ()  # some settings leave out some of them

    learning_rate: LearningRate
    clip_value: float | None = dataclasses.field(default=None, kw_only=True)
    clip_norm: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_learning_rate(self._field("learning_rate"), self.learning_rate)
        for clip in ("clip_value", "clip_norm"):
            if getattr(self, clip) is not None:
                check_number(self._field(clip), getattr(self, clip), above=0.0)
        for field in dataclasses.fields(self):
            if field.type in ("float", float):
                check_number(self._field(field.name), getattr(self, field.name))
            elif field.type in ("bool", bool):
                check_flag(self._field(field.name), getattr(self, field.name))

    def to_spec(self) -> dict[str, Any]:
        """Return the optimizer as plain values that JSON can hold; :func:`from_spec` is the way back.

        Returns:
            A dict of ``"name"``, ``"settings"``, ``"schedule"``, ``"clip_value"`` and ``"clip_norm"``; 0 where nothing
            is clipped.
        """
        return {
            "name": self.name,
            "settings": self._settings(),
            "schedule": learning_rate_to_spec(self.learning_rate),
            "clip_value": 0.0 if self.clip_value is None else float(self.clip_value),
            "clip_norm": 0.0 if self.clip_norm is None else float(self.clip_norm),
        }

    def _settings(self) -> dict[str, float]:
        settings: dict[str, float] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in SHARED and not ("dialect" in field.metadata and value == field.default):
                settings |= engine_setting(field.name, value)
        return settings

    @classmethod
    def _kept(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the state vectors that these settings of a specification keep, in order."""
        return cls.state_names

    def _field(self, field: str) -> str:
        return f"{type(self).__name__}.{field}"


def engine_setting(name: str, value: Any) -> dict[str, float]:
    """Return a field as the engine names it, with numbers alone."""
    if name == "betas":
        beta1, beta2 = value
        return {"beta1": float(beta1), "beta2": float(beta2)}
    return {name: float(value)}


def checked_betas(name: str, betas: Any) -> tuple[float, float]:
    """Return the two numbers of a field ``betas``; raise ConfigError where it holds something else."""
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ConfigError(f"{name} is {betas!r}; expected two numbers")
    for beta in betas:
        check_number(name, beta, below=1.0)
    return tuple(betas)
