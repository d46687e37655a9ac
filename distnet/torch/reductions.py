"""PyTorch's reductions in the engine's words, and those that the engine leaves to PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distnet.errors import ConfigError

__all__ = ["Reduction", "folded", "reduction_of"]

_NAMES = {"SUM": "sum", "AVG": "average", "MIN": "min", "MAX": "max", "PRODUCT": "product"}
_BITWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "BAND": torch.bitwise_and,
    "BOR": torch.bitwise_or,
    "BXOR": torch.bitwise_xor,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduction:
    """How values of all ranks become one.

    Attributes:
        name: of the engine's reduction.
        prescale: what each rank's values are multiplied by before.
        bitwise: the name of a reduction that the engine has not, which combines the bits of integers; else None.
    """

    name: str = "sum"
    prescale: float = 1.0
    bitwise: str | None = None


_PLAIN = {op: Reduction(name=name) for op, name in _NAMES.items()}


def reduction_of(op: Any, dtype: torch.dtype) -> Reduction:
    """Return what ``torch.distributed.ReduceOp`` means.

    Raises:
        ConfigError: a reduction of bits of numbers that are no integers, one that is unknown, or a factor of
            ``PREMUL_SUM`` that is not one number.
    """
    kind = getattr(op, "op", op).name
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain
    if kind == "PREMUL_SUM":
        return Reduction(prescale=_factor(op))
    if kind in _BITWISE:
        if dtype.is_floating_point or dtype.is_complex:
            raise ConfigError(f"ReduceOp.{kind} combines the bits of integers; the tensor is {dtype}")
        return Reduction(bitwise=kind)
    raise ConfigError(f"ReduceOp.{kind} is unknown; expected one of {', '.join([*_NAMES, 'PREMUL_SUM', *_BITWISE])}")


def folded(bitwise: str, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the bits of all ranks' values combined, in rank order."""
    result = values[0].clone()
    for value in values[1:]:
        result = _BITWISE[bitwise](result, value)
    return result


def _factor(op: Any) -> float:
    factor = op.__getstate__()[1]
    if isinstance(factor, torch.Tensor):
        if factor.numel() != 1:
            raise ConfigError(f"the factor of PREMUL_SUM has the shape {tuple(factor.shape)}; expected one number")
        factor = factor.item()
    return float(factor)
