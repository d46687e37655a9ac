"""A model's parameters as a server holds them: named, float32, in the memory that replies go to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from distnet._private.arrays import Array, Arrays
from distnet._private.manifest import Manifest
from distnet.errors import ConfigError, ManifestMismatch
from distnet.frameworks.replica import Replica
from distnet.frameworks.tensors import ModelTensor, check_held

__all__ = ["Parameters"]

# What is cast to float32 on its way to the server, and once on its way back.
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclasses.dataclass(kw_only=True)
class _Parameter:
    """A parameter that travels.

    Attributes:
        name: in the model.
        tensor: of the model.
        held: its float32 values in the replica; None: they are not there yet.
        held_at: the address of those values.
        gradient: memory for its gradient where that cannot be handed over as it is.
    """

    name: str
    tensor: Any
    held: Any = None
    held_at: int | None = None
    gradient: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether the parameter can live in the replica's memory."""
        tensor = self.tensor
        return bool(tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous())


class Parameters:
    """The parameters of a model that an optimizer trains, in the order of the model.

    Those that need no gradient when this is made stay with the worker, as buffers do.

    Args:
        optimizer: whose parameters travel.
        model: gives them their names.

    Raises:
        ConfigError: a parameter of the optimizer is none of the model's, or is one that no server can hold.

    Thread safety: none.
    """

    def __init__(self, optimizer: Any, model: Any) -> None:
        named = _named_parameters(model)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        ids = {id(parameter) for parameter in trained}
        strange = [parameter for parameter in trained if id(parameter) not in named]
        if strange:
            raise ConfigError(
                f"the optimizer has a parameter of shape {tuple(strange[0].shape)} that is none of the model's: give "
                "DistributedOptimizer() the model whose parameters the optimizer was made of"
            )
        self._parameters = [
            _Parameter(name=name, tensor=parameter)
            for key, (name, parameter) in named.items()
            if key in ids and parameter.requires_grad
        ]
        if not self._parameters:
            raise ConfigError("the optimizer has no parameter that needs a gradient; there is nothing to train")
        self._frozen = [
            (name, parameter) for key, (name, parameter) in named.items() if key in ids and not parameter.requires_grad
        ]
        for parameter in self._parameters:
            _check_holdable(parameter.name, parameter.tensor)

    @property
    def names(self) -> dict[int, str]:
        """The name of each by the ``id`` of its parameter."""
        return {id(parameter.tensor): parameter.name for parameter in self._parameters}

    def initial(self) -> dict[str, Array]:
        """Return copies of the values, by name: what a server begins with."""
        return {
            parameter.name: np.array(parameter.tensor.detach().to("cpu", torch.float32).numpy(), order="C")
            for parameter in self._parameters
        }

    def match(self, held: Arrays) -> None:
        """Take the order of the server's tensors.

        Raises:
            ManifestMismatch: they are not these parameters.
        """
        manifest = Manifest.of_arrays(held)
        if manifest.named:
            own = {parameter.name: parameter for parameter in self._parameters}
            missing = [name for name in manifest.names if name not in own]
            unknown = [name for name in own if name not in manifest.names]
            if missing or unknown:
                what = f"no {missing[0]!r}, which the server holds" if missing else f"{unknown[0]!r}, which it does not"
                raise ManifestMismatch(f"the optimizer's model is not the server's: it has {what}")
            self._parameters = [own[name] for name in manifest.names]
        described = [
            ModelTensor(label=f"parameter {each.name}", shape=tuple(each.tensor.shape), dtype="float32")
            for each in self._parameters
        ]
        check_held(described, held)

    @property
    def on_gpu(self) -> bool:
        """Whether any of them is on a GPU."""
        return any(parameter.tensor.device.type == "cuda" for parameter in self._parameters)

    def live_in(self, replica: Replica) -> None:
        """Have the parameters' values in the replica from now on.

        A contiguous float32 parameter on the CPU shares its memory; the others are copied from there by :meth:`take`.
        """
        for parameter, array in zip(self._parameters, replica.tensors, strict=True):
            parameter.held = torch.from_numpy(array)
            parameter.held_at = parameter.held.data_ptr()
            if parameter.is_plain:
                parameter.tensor.data = parameter.held
        self.take()

    def let_go(self) -> None:
        """Give the parameters memory of their own again."""
        for parameter in self._parameters:
            if parameter.held is not None and _share_memory(parameter):
                parameter.tensor.data = parameter.held.clone()

    def take(self) -> None:
        """Have in the parameters what came into the replica."""
        others = [parameter for parameter in self._parameters if not _share_memory(parameter)]
        if others:
            with torch.no_grad():
                for parameter in others:
                    parameter.tensor.copy_(parameter.held)

    def values(self) -> list[Array]:
        """Return the values as float32 arrays: views where they are in the replica."""
        return [parameter.tensor.detach().to("cpu", torch.float32).numpy() for parameter in self._parameters]

    def without_gradient(self) -> list[str]:
        """Return the names of those that have no gradient now."""
        return [parameter.name for parameter in self._parameters if parameter.tensor.grad is None]

    def gradients(self) -> list[Array] | None:
        """Return the gradients as float32 arrays, zeros where there is none; None where none has any.

        They are views of the gradients where these are float32 on the CPU, and stay valid until the next call.

        Raises:
            ConfigError: a gradient is sparse, or is one of a parameter that was frozen when this was made.
        """
        for name, tensor in self._frozen:
            if tensor.grad is not None:
                raise ConfigError(
                    f"parameter {name!r} has a gradient, and needed none when DistributedOptimizer() was made: the "
                    "server does not hold it. Let it need one before that"
                )
        if all(parameter.tensor.grad is None for parameter in self._parameters):
            return None
        return [_gradient(parameter) for parameter in self._parameters]

    def scale_gradients(self, factor: Any) -> None:
        """Multiply the gradients in place, as a gradient scaler does before a step."""
        with torch.no_grad():
            for parameter in self._parameters:
                gradient = parameter.tensor.grad
                if gradient is not None:
                    gradient.mul_(factor.to(gradient.device, non_blocking=True))


def _named_parameters(model: Any) -> dict[int, tuple[str, Any]]:
    """Return the model's parameters and their names by their ``id``, without the names of wrappers around the model."""
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; expected the torch.nn.Module that the optimizer trains")
    while (inner := _wrapped_model(model)) is not None:
        model = inner
    return {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}


def _wrapped_model(model: Any) -> Any | None:
    if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)  # what torch.compile returns


def _check_holdable(name: str, tensor: Any) -> None:
    if type(tensor.data).__name__ == "DTensor":
        raise ConfigError(f"parameter {name!r} is a DTensor, a part of one that is sharded: a server holds whole ones")
    if tensor.dtype not in _FLOATS:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        raise ConfigError(f"parameter {name!r} is {str(tensor.dtype).removeprefix('torch.')}; expected {expected}")
    if not all(tensor.shape):
        raise ConfigError(f"parameter {name!r} has shape {tuple(tensor.shape)}; expected no empty dimension")


def _share_memory(parameter: _Parameter) -> bool:
    return bool(parameter.tensor.data_ptr() == parameter.held_at)


def _gradient(parameter: _Parameter) -> Array:
    gradient = parameter.tensor.grad
    if gradient is not None and gradient.layout is not torch.strided:
        raise ConfigError(
            f"the gradient of {parameter.name!r} is sparse; a server takes dense ones: make the layer with sparse=False"
        )
    if gradient is not None and gradient.is_cpu and gradient.dtype is torch.float32:
        array: Array = (gradient.detach() if gradient.requires_grad else gradient).numpy()
        return array
    if parameter.gradient is None:
        pinned = parameter.tensor.device.type == "cuda"
        parameter.gradient = torch.zeros(parameter.tensor.shape, dtype=torch.float32, pin_memory=pinned)
    if gradient is None:
        parameter.gradient.zero_()
    else:
        parameter.gradient.copy_(gradient.detach())
    staged: Array = parameter.gradient.numpy()
    return staged
