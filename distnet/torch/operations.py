"""How the operations of a group of the engine begin, and become works of ``torch.distributed``.

How the vectors of ranks fit together stands in ``csrc/group/operation.h``: an operation's inputs are one vector in
pieces, and so are its outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy.typing as npt
import torch

from distnet.errors import ConfigError
from distnet.torch.completion import Completion
from distnet.torch.reductions import Reduction
from distnet.torch.tensors import HostValues
from distnet.torch.work import Work

__all__ = ["Call", "Operations", "Pieces", "pairs_by_dtype"]

Pieces = list[npt.NDArray[Any]]
_SUM = Reduction()
_BETWEEN_TWO = ("send", "receive")


@dataclasses.dataclass(frozen=True)
class Call:
    """How an operation is called.

    Attributes:
        timeout_s: that it may take.
        waits: whether the caller waits for it at once, so that it may run on the caller's own thread.
    """

    timeout_s: float
    waits: bool


class Operations:
    """What the collectives of one group have in common: the engine's group, and how an operation of it begins.

    Thread safety: any thread, as long as all ranks begin their operations in the same order.

    Args:
        native: the engine's group.
        completion: completes the futures of works.
    """

    def __init__(self, native: Any, completion: Completion) -> None:
        self._native = native
        self._completion = completion
        self.rank: int = native.rank
        self.size: int = native.size
        self.transport: str = native.transport

    def begin(
        self,
        kind: str,
        inputs: Pieces,
        outputs: Pieces | None,
        dtype: str,
        shape: tuple[int, ...],
        call: Call,
        *,
        result: list[torch.Tensor],
        reduction: Reduction = _SUM,
        root: int = 0,
        splits: Sequence[int] = (),
        tag: int = 0,
        written: Iterable[HostValues] = (),
        finish: Callable[[], None] | None = None,
    ) -> Work:
        """Begin an operation.

        Args:
            kind: of the operation, and further arguments, as the engine takes them.
            inputs: the pieces of this rank's vector.
            outputs: the pieces that the result goes to; None: it is not looked at.
            dtype: of the elements.
            shape: by which the others know this rank's vector.
            call: how it was called.
            result: the tensors of the work's result.
            reduction: of what is reduced.
            root: or the peer of a send and a receive.
            splits: rows for each rank.
            tag: of a send and a receive.
            written: what the engine writes to, in the memory of `outputs`.
            finish: what is left to do once the result is there; it puts `written` back itself.

        Raises:
            DistNetError: it cannot be, or the group has ended.
        """
        native = self._native.begin(
            kind,
            inputs,
            outputs,
            dtype=dtype,
            shape=shape,
            reduction=reduction.name,
            root=root,
            prescale=reduction.prescale,
            postscale=1.0,
            splits=splits,
            name="",
            tag=tag,
            timeout=call.timeout_s,
            inline=call.waits,
        )
        copies = [value for value in written if value.is_copy]
        if copies:
            finish = lambda: _put_back(copies)  # noqa: E731
        completion = self._completion
        later = completion.complete_alone if kind in _BETWEEN_TWO else completion.complete_in_turn
        return Work([native], result, finish=finish, complete_later=later, receives=kind == "receive")

    def together(self, works: Sequence[Work], result: list[torch.Tensor]) -> Work:
        """Return one work for several, which have begun one after the other."""
        return works[0] if len(works) == 1 else Work.joined(works, result, self._completion.complete_alone)

    def check_one_for_each(self, tensors: Sequence[Any], what: str) -> None:
        """Refuse a list that has not one tensor for each rank."""
        if len(tensors) != self.size:
            raise ConfigError(f"there are {len(tensors)} {what}; expected one for each of {self.size} ranks")


def _put_back(values: Iterable[HostValues]) -> None:
    for value in values:
        value.put_back()


def pairs_by_dtype(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return pairs of an output and an input, those of one dtype together."""
    if len(outputs) != len(inputs):
        raise ConfigError(f"there are {len(outputs)} outputs and {len(inputs)} inputs; expected as many")
    groups: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for pair in zip(outputs, inputs, strict=True):
        groups.setdefault(pair[1].dtype, []).append(pair)
    return list(groups.values())
