"""The collectives of ``torch.distributed`` that reduce, written once for every face that PyTorch asks for.

Roots are ranks of the group, reductions are ``ReduceOp``. Every operation returns a
:class:`~distnet.torch.work.Work` at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from distnet.errors import ConfigError
from distnet.torch.operations import Call, Operations, Pieces, pairs_by_dtype
from distnet.torch.reductions import folded, reduction_of
from distnet.torch.tensors import HostValues, reduced_as, same_dtype
from distnet.torch.work import Work

__all__ = ["Reducing"]


class Reducing:
    """What reduces the tensors of all ranks.

    Thread safety: any thread, as long as all ranks begin their operations in the same order.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def allreduce(self, tensors: Sequence[torch.Tensor], op: Any, call: Call) -> Work:
        """Reduce each tensor in place; those of one dtype travel together."""
        if len(tensors) == 1:
            return self._allreduce(tensors, op, call)
        return self._operations.together(
            [self._allreduce(group, op, call) for group in _by_dtype(tensors)], list(tensors)
        )

    def _allreduce(self, tensors: Sequence[torch.Tensor], op: Any, call: Call) -> Work:
        reduction = reduction_of(op, tensors[0].dtype)
        if reduction.bitwise is not None:
            return self._operations.together(
                [self._combine(tensor, reduction.bitwise, call) for tensor in tensors], list(tensors)
            )
        values = [HostValues(tensor, read=True) for tensor in tensors]
        pieces = [value.flat for value in values]
        dtype, shape = reduced_as(tensors[0])
        if len(pieces) > 1:
            shape = (sum(piece.size for piece in pieces),)
        return self._operations.begin(
            "allreduce", pieces, pieces, dtype, shape, call, reduction=reduction, written=values, result=list(tensors)
        )

    def reduce(self, tensor: torch.Tensor, root: int, op: Any, call: Call) -> Work:
        """Reduce to the root; the tensors of others stay as they are."""
        if self._operations.rank == root:
            return self._allreduce([tensor], op, call)
        reduction = reduction_of(op, tensor.dtype)
        if reduction.bitwise is not None:
            return self._combine(tensor.clone(), reduction.bitwise, call)
        dtype, shape = reduced_as(tensor)
        pieces = [HostValues(tensor, read=True).flat]
        return self._operations.begin(
            "allreduce", pieces, None, dtype, shape, call, reduction=reduction, result=[tensor]
        )

    def reduce_scatter(self, output: torch.Tensor, inputs: Sequence[torch.Tensor], op: Any, call: Call) -> Work:
        """Reduce what all ranks have for one rank, for each of them; each takes its own."""
        self._operations.check_one_for_each(inputs, "inputs")
        return self._reduce_scatter([output], [[tensor] for tensor in inputs], op, call)

    def reduce_scatter_flat(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], op: Any, call: Call
    ) -> Work:
        """The same, where each input is what all ranks get, one after the other; those of one dtype travel together."""
        works = []
        for pairs in pairs_by_dtype(outputs, inputs):
            parts = [self._parts_of(tensor) for _, tensor in pairs]
            works.append(self._reduce_scatter([o for o, _ in pairs], list(zip(*parts, strict=True)), op, call))
        return self._operations.together(works, list(outputs))

    def _reduce_scatter(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[Sequence[torch.Tensor]], op: Any, call: Call
    ) -> Work:
        everything = list(itertools.chain.from_iterable(inputs))
        reduction = reduction_of(op, same_dtype([*outputs, *everything]))
        sources = [[HostValues(tensor, read=True).flat for tensor in tensors] for tensors in inputs]
        counts = [sum(piece.size for piece in pieces) for pieces in sources]
        targets = [HostValues(output, read=False) for output in outputs]
        self._check_filled(targets, counts[self._operations.rank])
        dtype, _ = reduced_as(outputs[0])
        pieces = list(itertools.chain.from_iterable(sources))
        if reduction.bitwise is not None:
            return self._combine_scattered(targets, pieces, counts, dtype, reduction.bitwise, call)
        return self._operations.begin(
            "reduce_scatter",
            pieces,
            [target.flat for target in targets],
            dtype,
            (sum(counts),),
            call,
            reduction=reduction,
            splits=counts,
            written=targets,
            result=list(outputs),
        )

    def _combine(self, tensor: torch.Tensor, bitwise: str, call: Call) -> Work:
        """Combine the bits of all ranks' integers, which the engine moves and PyTorch combines."""
        value = HostValues(tensor, read=True)
        gathered = torch.empty((self._operations.size, value.tensor.numel()), dtype=tensor.dtype)
        dtype, shape = reduced_as(tensor)

        def finish() -> None:
            value.tensor.view(-1).copy_(folded(bitwise, gathered.unbind()))
            value.put_back()

        pieces = [HostValues(gathered, read=False).flat]
        return self._operations.begin(
            "allgather", [value.flat], pieces, dtype, shape, call, finish=finish, result=[tensor]
        )

    def _combine_scattered(
        self,
        targets: Sequence[HostValues],
        pieces: Pieces,
        counts: Sequence[int],
        dtype: str,
        bitwise: str,
        call: Call,
    ) -> Work:
        gathered = torch.empty((self._operations.size, counts[self._operations.rank]), dtype=targets[0].tensor.dtype)

        def finish() -> None:
            parts = folded(bitwise, gathered.unbind()).split([target.tensor.numel() for target in targets])
            for target, part in zip(targets, parts, strict=True):
                target.tensor.view(-1).copy_(part)
                target.put_back()

        return self._operations.begin(
            "alltoall",
            pieces,
            [HostValues(gathered, read=False).flat],
            dtype,
            (sum(counts),),
            call,
            splits=counts,
            finish=finish,
            result=[target.tensor for target in targets],
        )

    def _parts_of(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a tensor's equal parts, one for each rank."""
        if tensor.numel() % self._operations.size:
            raise ConfigError(
                f"a tensor of {tensor.numel()} elements has no equal parts for {self._operations.size} ranks"
            )
        parts: tuple[torch.Tensor, ...] = tensor.reshape(-1).tensor_split(self._operations.size)
        return parts

    @staticmethod
    def _check_filled(targets: Sequence[HostValues], elements: int) -> None:
        room = sum(target.tensor.numel() for target in targets)
        if room != elements:
            raise ConfigError(f"the output has {room} elements; this rank's part of the inputs has {elements}")


def _by_dtype(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())
