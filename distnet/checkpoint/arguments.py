"""Those of a server's arguments that a checkpoint keeps, and who decides when it is gone on from.

An argument that is given wins; one that is not is the file's; where the file has none, there is a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from distnet.checkpoint.every import parse_every
from distnet.errors import ConfigError
from distnet.optimizers import SGD, Group, from_spec
from distnet.semantics import SEMANTICS, Semantics

__all__ = ["DEFAULTS", "Difference", "arguments_from_spec", "arguments_to_spec", "decide"]

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "semantics": SEMANTICS["async-lockfree"],
        "optimizer": SGD(0.01),
        "workers": 1,
        "servers": 1,
        "ema_decay": 0.0,
        "groups": MappingProxyType({}),
        "push_format": "float32",
        "pull_format": "float32",
        "reconnect_timeout": 0.0,
    }
)

_EVERY = "checkpoint_every"  # which a server's file keeps for launchers: as an argument it has a default of its own


@dataclasses.dataclass(frozen=True)
class Difference:
    """An argument that was given to a server in place of what its checkpoint has.

    Attributes:
        name: the argument's name, such as ``"workers"``; ``"learning_rate"`` for one that was set while training.
        kept: the checkpoint's value.
        given: the one that counts.

    Thread safety: it never changes.

    Example:
        >>> print(distnet.checkpoint.Difference("workers", kept=2, given=4))
        workers is 4, and was 2
    """

    name: str
    kept: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.given)}, and was {_shown(self.kept)}"


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Semantics) else repr(value)


def decide(given: Mapping[str, Any], kept: Mapping[str, Any]) -> tuple[dict[str, Any], list[Difference]]:
    """Return the value of every argument of :data:`DEFAULTS`, and which given ones are not as they were.

    Args:
        given: arguments by name; None stands for one that was not given.
        kept: what the checkpoint has; some may be missing.

    Returns:
        The value of each, and a difference for each that was given and is not the checkpoint's.
    """
    decided: dict[str, Any] = {}
    differences = []
    for name, default in DEFAULTS.items():
        value = given.get(name)
        if value is None:
            decided[name] = kept.get(name, default)
            continue
        decided[name] = value
        if name in kept and _plain(name, kept[name]) != _plain(name, value):
            differences.append(Difference(name, kept[name], value))
    if given.get("servers") is None:
        decided["servers"] = max(decided["servers"], decided["semantics"].minimum_servers)
    return decided, differences


def arguments_to_spec(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`decide` returns as plain values that JSON can hold.

    Args:
        arguments: values by name.

    Returns:
        The same names with plain values.
    """
    return {name: _plain(name, value) for name, value in arguments.items()}


def _plain(name: str, value: Any) -> Any:
    if name == "semantics":
        return dataclasses.asdict(value)
    if name == "optimizer":
        return value.to_spec()
    if name == "groups":  # in order: the first pattern that matches counts
        return [[pattern, _plain_group(group)] for pattern, group in value.items()]
    return value


def _plain_group(group: Group) -> dict[str, Any]:
    plain = dataclasses.asdict(group)
    if not group.settings:
        del plain["settings"]  # which earlier versions do not know
    return plain


def arguments_from_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments whose :func:`arguments_to_spec` this is; some may be missing.

    Args:
        spec: plain values by name.

    Returns:
        The arguments as ``ParameterServer`` takes them.

    Raises:
        ConfigError: something else.
    """
    if not set(spec) <= {*DEFAULTS, _EVERY}:
        raise ConfigError(f"the arguments of a server are {str(spec)[:200]}; expected some of {', '.join(DEFAULTS)}")
    arguments = dict(spec)
    if _EVERY in arguments:
        parse_every(arguments[_EVERY])
    for name in ("workers", "servers"):
        if type(arguments.get(name, 1)) is not int:
            raise ConfigError(f"the number of {name} is {arguments[name]!r}; expected a whole number")
    try:
        if "semantics" in arguments:
            arguments["semantics"] = Semantics(**arguments["semantics"])
        if "optimizer" in arguments:
            arguments["optimizer"] = from_spec(arguments["optimizer"])
        if "groups" in arguments:
            arguments["groups"] = {pattern: Group(**group) for pattern, group in arguments["groups"]}
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"the arguments of a server are not what this version knows: {error}") from error
    return arguments
