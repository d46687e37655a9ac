"""A server's arguments, checked: what it holds, what it goes on from, and what its shards are told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from distnet import _native
from distnet._private.arrays import ParametersLike, named_parameters
from distnet._private.bounds import MOST_SERVERS, check_seconds, check_whole, most_workers
from distnet.checkpoint.arguments import decide
from distnet.checkpoint.contents import Checkpoint
from distnet.checkpoint.restoring import Restoring
from distnet.errors import ConfigError
from distnet.optimizers import Optimizer
from distnet.semantics import Semantics, resolve_semantics
from distnet.shards.all_shards import Model
from distnet.shards.settings import check_decay, check_optimizer, checked_groups, engine_settings
from distnet.snapshot import Snapshot
from distnet.tuning import Tuning

__all__ = ["ServerArguments"]


class ServerArguments:
    """What a server was told, with a value for everything that it was not told.

    Args:
        parameters: initial values, as :class:`distnet.ParameterServer` takes them.
        restore: what the server goes on from, as that takes it.
        tuning: which fast paths to take; None: all.
        given: those that a checkpoint keeps (:data:`distnet.checkpoint.arguments.DEFAULTS`), as that takes them.

    Attributes:
        kept: those arguments, each with a value.
        model: whether the parameters have names, and (name, array) pairs; None where there are none.
        restoring: what the server goes on from; None: it begins anew.
        settings: what the native shards share.
        optimizer_may_come: whether the client that brings the model may bring an optimizer that is not known yet.

    Raises:
        ConfigError: a value is out of range, or contradicts another.
        CheckpointError: what is restored is no checkpoint, or is damaged.
        ManifestMismatch: parameters that are no floats, or that float32 cannot hold.
    """

    def __init__(
        self,
        parameters: ParametersLike | None,
        restore: str | os.PathLike[str] | Checkpoint | Snapshot | None,
        tuning: Tuning | None,
        **given: Any,
    ) -> None:
        semantics, optimizer, groups = given["semantics"], given["optimizer"], given["groups"]
        check_optimizer(optimizer)
        given = {
            **given,
            "semantics": None if semantics is None else resolve_semantics(semantics),
            "groups": None if groups is None else checked_groups(groups),
        }
        self.restoring = None if restore is None else Restoring(restore, given)
        self.kept: Mapping[str, Any] = decide(given, {})[0] if self.restoring is None else self.restoring.arguments
        self._check()
        self.model = _checked_model(parameters, self.restoring)
        self.optimizer_may_come = optimizer is None and groups is None and restore is None and parameters is None
        self.settings: Mapping[str, Any] = engine_settings(
            self.kept,
            tuning or Tuning(),
            model_is_given=self.model is not None or self.restoring is not None,
            optimizer_is_given=not self.optimizer_may_come,
        )

    def _check(self) -> None:
        semantics: Semantics = self.kept["semantics"]
        check_whole("servers", self.kept["servers"], semantics.minimum_servers, MOST_SERVERS)
        check_whole("workers", self.kept["workers"], 1, most_workers(semantics.joins))
        check_decay(self.kept["ema_decay"])
        check_seconds("reconnect_timeout", self.kept["reconnect_timeout"])

    def take_brought(self, brought: Mapping[str, Any]) -> None:
        """Take the optimizer and the groups that came with the model, as the shards say.

        Args:
            brought: both, or as much of them as is known.
        """
        self.optimizer_may_come = False
        self.kept = {**self.kept, **brought}
        optimizer: Optimizer = self.kept["optimizer"]
        self.settings = {**self.settings, "optimizer": optimizer.to_spec()}


def _checked_model(parameters: ParametersLike | None, restoring: Restoring | None) -> Model | None:
    """Return initial values with their names; None where there are none."""
    if parameters is None:
        return None
    named, tensors = named_parameters(parameters)
    if not tensors:
        raise ConfigError("a model without parameters; give at least one array, or None to have rank 0 bring them")
    _native.check_model(named, tensors)
    if restoring is not None:
        restoring.check(dict(tensors) if named else [array for _, array in tensors])
    return named, tensors
