"""What a server's arguments may be, and what the engine is told of them."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from distnet.checkpoint.arguments import arguments_from_spec, arguments_to_spec
from distnet.errors import ConfigError
from distnet.formats import format_spec
from distnet.optimizers import Group, Optimizer
from distnet.tuning import Tuning

__all__ = [
    "check_decay",
    "check_optimizer",
    "check_rank",
    "check_round",
    "checked_groups",
    "engine_settings",
    "groups_to_spec",
    "settings_from_text",
]

_MOST_TEXT = 4096  # of what clients are told of the server
_MOST_OPTIMIZER_TEXT = 20_480  # and of its optimizer: a welcome has room for so much


def engine_settings(
    arguments: Mapping[str, Any], tuning: Tuning, *, model_is_given: bool, optimizer_is_given: bool
) -> dict[str, Any]:
    """Return the settings that the native shards of one server share, with secrets of their own.

    Args:
        arguments: of ``ParameterServer``, those that a checkpoint keeps, each with a value.
        tuning: which fast paths to take.
        model_is_given: whether the server has a model before it serves; clients' models are then only checked.
        optimizer_is_given: whether optimizer and groups were given; else the client that brings the model may bring
            them.
    """
    policy = dataclasses.asdict(arguments["semantics"])
    del policy["minimum_servers"]
    optimizer: Optimizer = arguments["optimizer"]
    groups: Mapping[str, Group] = arguments["groups"]
    return {
        "policy": policy | {"workers": arguments["workers"]},
        "optimizer": optimizer.to_spec(),
        "ema_decay": float(arguments["ema_decay"]),
        "groups": groups_to_spec(groups, optimizer),
        "push_format": format_spec(arguments["push_format"], what="push"),
        "pull_format": format_spec(arguments["pull_format"], what="pull"),
        "reconnect_timeout": float(arguments["reconnect_timeout"]),
        "model_from_owner": model_is_given,
        "optimizer_from_client": not optimizer_is_given,
        "about": _as_text(_MOST_TEXT, arguments, "semantics"),
        "about_optimizer": _as_text(_MOST_OPTIMIZER_TEXT, arguments, "optimizer", "groups"),
        "shards": arguments["servers"],
        "job_secret": (_secret(), _secret()),
        "owner": _secret(),
        "tuning": tuning.to_spec(),
    }


def _as_text(most: int, arguments: Mapping[str, Any], *names: str) -> str:
    """Return arguments as clients are told of them; nothing where they would not fit."""
    text = json.dumps(arguments_to_spec({name: arguments[name] for name in names}))
    return text if len(text) <= most else ""


def _secret() -> int:
    """Return a random number from 1 to 2**63 - 1."""
    return secrets.randbelow(2**63 - 1) + 1


def groups_to_spec(groups: Mapping[str, Group], optimizer: Optimizer) -> list[tuple[Any, ...]]:
    """Return groups as the engine takes them, or raise ConfigError where one does not suit the optimizer."""
    spec = []
    for pattern, group in groups.items():
        try:
            settings = group.engine_settings(optimizer)
        except ConfigError as error:
            raise ConfigError(f"groups[{pattern!r}]: {error}") from error
        spec.append((pattern, group.learning_rate_multiplier, group.weight_decay, settings))
    return spec


def settings_from_text(*texts: str) -> dict[str, Any]:
    """Return the arguments that texts about a server say, which ``engine_settings`` or a client has made.

    Raises:
        ConfigError: something else; the engine hands on what a client has brought without reading it.
    """
    try:
        spec = {name: value for text in texts if text for name, value in json.loads(text).items()}
    except (AttributeError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"what clients are told of the server is nothing that this version knows ({error}): install the same "
            "DistNet on both sides"
        ) from error
    return arguments_from_spec(spec)


def checked_groups(groups: object) -> dict[str, Group]:
    """Return groups by their patterns, or raise ConfigError where something is no pattern or no Group."""
    example = '{"*bias*": distnet.Group(weight_decay=0)}'
    if not isinstance(groups, Mapping):
        raise ConfigError(f"groups is {groups!r}; expected patterns of names and their settings: {example}")
    for pattern, group in groups.items():
        if not isinstance(pattern, str) or not isinstance(group, Group):
            raise ConfigError(f"groups has {pattern!r}: {group!r}; expected a pattern and a Group, such as {example}")
    return dict(groups)


def check_decay(ema_decay: object) -> None:
    """Raise ConfigError unless it is a decay: from 0, which keeps no average, to below 1."""
    if isinstance(ema_decay, bool | str) or not hasattr(ema_decay, "__float__") or not 0 <= float(ema_decay) < 1:
        raise ConfigError(f"ema_decay is {ema_decay!r}; expected a decay below 1, such as 0.999, or 0 for none")


def check_rank(rank: object, workers: int) -> None:
    """Raise ConfigError unless it is one of so many ranks."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < workers:
        raise ConfigError(f"rank is {rank!r}; expected a whole number from 0 to {workers - 1}")


def check_round(at_round: object) -> None:
    """Raise ConfigError unless it is the number of a round, or None."""
    if at_round is not None and (
        isinstance(at_round, bool) or not isinstance(at_round, int) or not 0 <= at_round < 2**63
    ):
        raise ConfigError(f"at_round is {at_round!r}; expected the number of a round, or None")


def check_optimizer(optimizer: object) -> None:
    """Raise ConfigError unless it is an optimizer, or None."""
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is {optimizer!r}; expected one such as distnet.Adam(0.001)")
