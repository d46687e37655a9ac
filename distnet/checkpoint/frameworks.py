"""A checkpoint's parameters in a model of Keras or PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from distnet._private.arrays import Array, ArraysLike, named_arrays
from distnet.checkpoint.folder import load
from distnet.errors import ConfigError, ManifestMismatch

if TYPE_CHECKING:
    import torch

__all__ = ["load_into_keras", "torch_state_dict"]

_NAMES_SHOWN = 10  # in a message


def load_into_keras(path: str | os.PathLike[str], model: Any, ema: bool = False) -> None:
    """Put a checkpoint's parameters into a Keras model: all of them, or none where one does not fit.

    A checkpoint with names goes by each weight's ``path`` (``"sequential/dense/kernel"``), or by its ``name`` where
    the checkpoint has those; one of a list goes by the order of ``model.trainable_variables``, or of ``model.weights``
    where it has as many tensors as that. Weights that are not trainable, such as the statistics of batch normalization,
    keep their values where the checkpoint does not have them.

    Args:
        path: a checkpoint's file, or a folder of checkpoints.
        model: a built ``keras.Model``, of any backend.
        ema: put the exponential moving average (EMA) of the parameters there instead.

    Raises:
        ManifestMismatch: the checkpoint lacks a trainable weight, holds a tensor that the model has not, or one of
            another shape; the message has its name.
        ConfigError: the checkpoint holds no EMA.
        CheckpointError: what :func:`distnet.checkpoint.load` raises.
    """
    named, tensors = _tensors(path, ema)
    pairs = _by_name(tensors, model) if named else _by_order(tensors, model)
    for name, array, variable in pairs:
        if tuple(variable.shape) != array.shape:
            raise ManifestMismatch(
                f"tensor {name!r} of {path} has the shape {array.shape}, and the model's weight {tuple(variable.shape)}"
            )
    for _, array, variable in pairs:
        variable.assign(array)


def _tensors(path: str | os.PathLike[str], ema: bool) -> tuple[bool, list[tuple[str, Array]]]:
    checkpoint = load(path)
    arrays: ArraysLike | None = checkpoint.ema if ema else checkpoint.parameters
    if arrays is None:
        raise ConfigError(f"{checkpoint.path} holds no moving average: use ema=False, or train with ema_decay=")
    return named_arrays(arrays)


def _by_name(tensors: Sequence[tuple[str, Array]], model: Any) -> list[tuple[str, Array, Any]]:
    names = {name for name, _ in tensors}
    key = _key_of(names, model.trainable_variables)
    missing = [key(variable) for variable in model.trainable_variables if key(variable) not in names]
    if missing:
        raise ManifestMismatch(
            f"the checkpoint has no tensor {missing[0]!r}, which the model trains; it has {_some(names)} (Keras "
            "numbers the layers of a process: name them, or call keras.utils.clear_session() before a second model)"
        )
    variables: dict[str, Any] = {}
    for variable in model.weights:
        if variables.setdefault(key(variable), variable) is not variable and key(variable) in names:
            raise ManifestMismatch(f"two weights of the model are named {key(variable)!r}; name the layers apart")
    extra = [name for name, _ in tensors if name not in variables]
    if extra:
        raise ManifestMismatch(
            f"the checkpoint has a tensor {extra[0]!r}, and the model none of that name; it has {_some(variables)}"
        )
    return [(name, array, variables[name]) for name, array in tensors]


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    few = [first, *rest[: _NAMES_SHOWN - 1]]
    return ", ".join(few) + (f" and {len(rest) + 1 - len(few)} more" if len(rest) >= _NAMES_SHOWN else "")


def _key_of(names: set[str], variables: Sequence[Any]) -> Any:
    """Return what gives the name that the checkpoint has for a weight."""

    def path(variable: Any) -> str:
        return str(getattr(variable, "path", variable.name))

    def name(variable: Any) -> str:
        return str(variable.name)

    return max((path, name), key=lambda key: sum(key(variable) in names for variable in variables))


def _by_order(tensors: Sequence[tuple[str, Array]], model: Any) -> list[tuple[str, Array, Any]]:
    for variables in (model.trainable_variables, model.weights):
        if len(variables) == len(tensors):
            return [(name, array, variable) for (name, array), variable in zip(tensors, variables, strict=True)]
    raise ManifestMismatch(
        f"the checkpoint has {len(tensors)} tensors without names, and the model {len(model.trainable_variables)} "
        f"trainable weights of {len(model.weights)}"
    )


def torch_state_dict(path: str | os.PathLike[str], ema: bool = False) -> dict[str, torch.Tensor]:
    """Return a checkpoint's parameters by name as PyTorch tensors, for ``module.load_state_dict``.

    Buffers of a module, such as the running mean of a ``BatchNorm2d``, are not among them unless they were given to the
    server: ``load_state_dict(..., strict=False)`` leaves those as they are.

    Args:
        path: a checkpoint's file, or a folder of checkpoints.
        ema: return the EMA instead.

    Returns:
        Float32 tensors on the CPU, in memory of their own. A checkpoint of a list has the names ``"0"``, ``"1"`` and so
        on.

    Raises:
        ConfigError: the checkpoint holds no EMA.
        CheckpointError: what :func:`distnet.checkpoint.load` raises.
    """
    import torch

    return {name: torch.tensor(array) for name, array in _tensors(path, ema)[1]}
