"""The collectives of ``torch.distributed`` that move tensors, written once for every face that PyTorch asks for.

Roots and peers are ranks of the group. Every operation returns a :class:`~distnet.torch.work.Work` at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from distnet.errors import ConfigError
from distnet.torch.operations import Call, Operations, Pieces, pairs_by_dtype
from distnet.torch.tensors import HostValues, moved_as, same_dtype
from distnet.torch.work import Work

__all__ = ["ANY_RANK", "Moving"]

ANY_RANK = 2**32 - 1  # as the engine has it: whoever sends


class Moving:
    """What moves tensors between ranks, and the barrier.

    Thread safety: any thread, as long as all ranks begin their operations in the same order.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def allgather(self, outputs: Sequence[torch.Tensor], tensor: torch.Tensor, call: Call) -> Work:
        """Hand every rank's tensor to all; the outputs are one for each rank, and may differ in their rows."""
        self._operations.check_one_for_each(outputs, "outputs")
        return self._allgather(outputs, tensor, call)

    def _allgather(self, outputs: Sequence[torch.Tensor], tensor: torch.Tensor, call: Call) -> Work:
        same_dtype([*outputs, tensor])
        targets = [HostValues(output, read=False) for output in outputs]
        dtype, shape = moved_as(tensor)
        return self._operations.begin(
            "allgather",
            [HostValues(tensor, read=True).flat],
            [target.flat for target in targets],
            dtype,
            shape,
            call,
            written=targets,
            result=list(outputs),
        )

    def allgather_flat(self, outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], call: Call) -> Work:
        """The same for several tensors, where each output takes those of all ranks, one after the other."""
        if len(outputs) == len(tensors) == 1:
            self._check_holds_all(outputs[0], tensors[0])
            return self._allgather(outputs, tensors[0], call)
        works = []
        for pairs in pairs_by_dtype(outputs, tensors):
            for output, tensor in pairs:
                self._check_holds_all(output, tensor)
            targets = [HostValues(output, read=False) for output, _ in pairs]
            parts = [target.flat.reshape(self._operations.size, -1) for target in targets]
            slots = [part[rank] for rank in range(self._operations.size) for part in parts]
            sources = [tensor for _, tensor in pairs]
            works.append(self._allgather_many(sources, targets, slots, call, [output for output, _ in pairs]))
        return self._operations.together(works, list(outputs))

    def allgather_lists(
        self, outputs: Sequence[Sequence[torch.Tensor]], tensors: Sequence[torch.Tensor], call: Call
    ) -> Work:
        """The same, where the outputs are those of each rank: one for each of the tensors."""
        self._operations.check_one_for_each(outputs, "outputs")
        targets = [HostValues(tensor, read=False) for of_rank in outputs for tensor in of_rank]
        same_dtype([*tensors, *itertools.chain.from_iterable(outputs)])
        result = list(itertools.chain.from_iterable(outputs))
        return self._allgather_many(tensors, targets, [target.flat for target in targets], call, result)

    def _allgather_many(
        self,
        tensors: Sequence[torch.Tensor],
        targets: Sequence[HostValues],
        slots: Pieces,
        call: Call,
        result: list[torch.Tensor],
    ) -> Work:
        pieces = [HostValues(tensor, read=True).flat for tensor in tensors]
        dtype, _ = moved_as(tensors[0])
        shape = (sum(piece.size for piece in pieces),)
        return self._operations.begin("allgather", pieces, slots, dtype, shape, call, written=targets, result=result)

    def alltoall(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], call: Call) -> Work:
        """Hand one input to each rank, and take one output from each."""
        self._operations.check_one_for_each(inputs, "inputs")
        self._operations.check_one_for_each(outputs, "outputs")
        same_dtype([*outputs, *inputs])
        pieces = [HostValues(tensor, read=True).flat for tensor in inputs]
        targets = [HostValues(tensor, read=False) for tensor in outputs]
        counts = [piece.size for piece in pieces]
        return self._alltoall(targets, pieces, counts, moved_as(inputs[0])[0], call, list(outputs))

    def alltoall_flat(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_rows: Sequence[int],
        rows: Sequence[int],
        call: Call,
    ) -> Work:
        """The same, where the rows of one tensor go to all ranks: so many to each, or as many to each."""
        same_dtype([output, tensor])
        target, piece = HostValues(output, read=False), HostValues(tensor, read=True).flat
        self._elements_for_each(output, output_rows, target.flat.size, "output")
        counts = self._elements_for_each(tensor, rows, piece.size, "input")
        return self._alltoall([target], [piece], counts, moved_as(tensor)[0], call, [output])

    def _alltoall(
        self,
        targets: Sequence[HostValues],
        pieces: Pieces,
        counts: Sequence[int],
        dtype: str,
        call: Call,
        result: list[torch.Tensor],
    ) -> Work:
        outputs = [target.flat for target in targets]
        shape = (sum(counts),)
        return self._operations.begin(
            "alltoall", pieces, outputs, dtype, shape, call, splits=counts, written=targets, result=result
        )

    def broadcast(self, tensor: torch.Tensor, root: int, call: Call) -> Work:
        """Hand the root's tensor to all."""
        value = HostValues(tensor, read=self._operations.rank == root)
        dtype, shape = moved_as(tensor)
        pieces = [value.flat]
        written = [] if self._operations.rank == root else [value]
        return self._operations.begin(
            "broadcast", pieces, pieces, dtype, shape, call, root=root, written=written, result=[tensor]
        )

    def gather(self, outputs: Sequence[torch.Tensor], tensor: torch.Tensor, root: int, call: Call) -> Work:
        """Hand every rank's tensor to the root, which has one output for each."""
        targets: list[HostValues] = []
        if self._operations.rank == root:
            self._operations.check_one_for_each(outputs, "outputs")
            same_dtype([*outputs, tensor])
            targets = [HostValues(output, read=False) for output in outputs]
        pieces = [HostValues(tensor, read=True).flat]
        slots = [target.flat for target in targets] or None
        dtype, shape = moved_as(tensor)
        return self._operations.begin(
            "gather", pieces, slots, dtype, shape, call, root=root, written=targets, result=list(outputs)
        )

    def scatter(self, output: torch.Tensor, inputs: Sequence[torch.Tensor], root: int, call: Call) -> Work:
        """Hand each rank one of the root's tensors."""
        target = HostValues(output, read=False)
        pieces: Pieces = []
        counts: list[int] = []
        if self._operations.rank == root:
            self._operations.check_one_for_each(inputs, "inputs")
            same_dtype([output, *inputs])
            pieces = [HostValues(tensor, read=True).flat for tensor in inputs]
            counts = [piece.size for piece in pieces]
        shape = (sum(counts) if pieces else target.flat.size,)
        return self._operations.begin(
            "scatter",
            pieces,
            [target.flat],
            moved_as(output)[0],
            shape,
            call,
            root=root,
            splits=counts,
            written=[target],
            result=[output],
        )

    def barrier(self, call: Call) -> Work:
        """Wait for all ranks."""
        return self._operations.begin("barrier", [], None, "uint8", (), call, result=[])

    # ---- between two ranks -----------------------------------------------------------------------------------------
    def send(self, tensor: torch.Tensor, to: int, tag: int, call: Call) -> Work:
        """Hand a tensor to one rank."""
        pieces = [HostValues(tensor, read=True).flat]
        dtype, shape = moved_as(tensor)
        return self._operations.begin("send", pieces, None, dtype, shape, call, root=to, tag=tag, result=[tensor])

    def receive(self, tensor: torch.Tensor, source: int, tag: int, call: Call) -> Work:
        """Take a tensor from one rank, or from :data:`ANY_RANK`."""
        target = HostValues(tensor, read=False)
        dtype, shape = moved_as(tensor)
        return self._operations.begin(
            "receive",
            [],
            [target.flat],
            dtype,
            shape,
            call,
            root=source,
            tag=tag,
            written=[target],
            result=[tensor],
        )

    def _elements_for_each(self, tensor: torch.Tensor, rows: Sequence[int], elements: int, what: str) -> list[int]:
        """Return how many elements there are for each rank, by its rows; without rows: as many for each."""
        size = self._operations.size
        there = tensor.shape[0] if tensor.dim() else 1
        if not rows:
            if there % size:
                raise ConfigError(f"the {what} has {there} rows, no multiple of {size} ranks; give split sizes")
            return [elements // size] * size
        if len(rows) != size or sum(rows) != there or min(rows) < 0:
            raise ConfigError(
                f"the {what}'s split sizes are {list(rows)}; expected {size}, one for each rank, {there} in all"
            )
        row = elements // there if there else 0
        return [row * count for count in rows]

    def _check_holds_all(self, output: torch.Tensor, tensor: torch.Tensor) -> None:
        same_dtype([output, tensor])
        size = self._operations.size
        if output.numel() != tensor.numel() * size:
            raise ConfigError(
                f"the output has {output.numel()} elements; expected {tensor.numel()} from each of {size} ranks"
            )
