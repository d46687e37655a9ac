"""Every collective, its results against those of gloo, or against what PyTorch computes on one rank."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [*INTEGERS, *FLOATS, torch.bool]
SHAPE = (5, 3)
LONG = 300_001  # elements: more than a lane's chunk, and no multiple of anything

Tensors = list[torch.Tensor]


def values(rank: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a rank's small whole numbers, whose sums and products every dtype holds exactly."""
    random = torch.Generator().manual_seed(1000 + rank)
    return torch.randint(0, 4, shape, generator=random).to(dtype)


def of_all(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensors:
    """Return the values of all ranks."""
    return [values(rank, shape, dtype) for rank in range(dist.get_world_size())]


def check(seen: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Fail unless dtype, shape and bits are the same."""
    assert seen.dtype == expected.dtype, f"{what}: {seen.dtype}, expected {expected.dtype}"
    assert torch.equal(seen, expected), f"{what}: {seen}, expected {expected}"


# ---- reductions ----------------------------------------------------------------------------------------------------
def _combined(op: Any, tensors: Tensors) -> torch.Tensor:
    kind = getattr(op, "op", op).name
    stacked = torch.stack(tensors)
    if kind in ("BAND", "BOR", "BXOR"):
        combine = {"BAND": torch.bitwise_and, "BOR": torch.bitwise_or, "BXOR": torch.bitwise_xor}[kind]
        result = tensors[0]
        for tensor in tensors[1:]:
            result = combine(result, tensor)
        return result
    dtype = tensors[0].dtype
    if dtype == torch.bool:
        return stacked.any(0) if kind in ("SUM", "MAX") else stacked.all(0)
    wide = stacked.to(torch.float64)
    result = {
        "SUM": lambda: wide.sum(0),
        "AVG": lambda: wide.sum(0) / len(tensors),
        "MIN": lambda: wide.min(0).values,
        "MAX": lambda: wide.max(0).values,
        "PRODUCT": lambda: wide.prod(0),
        "PREMUL_SUM": lambda: wide.sum(0) * 0.5,
    }[kind]()
    return result.to(dtype) if dtype.is_floating_point else result.trunc().to(dtype)


def _operators(dtype: torch.dtype) -> list[Any]:
    op = dist.ReduceOp
    plain = [op.SUM, op.PRODUCT, op.MIN, op.MAX]
    if dtype == torch.bool:
        return [*plain, op.BAND, op.BOR, op.BXOR]
    if dtype.is_floating_point:
        return [*plain, op.AVG, dist._make_nccl_premul_sum(0.5)]
    return [*plain, op.AVG, op.BAND, op.BOR, op.BXOR]


def reductions() -> None:
    """Every reduction of every dtype, by each call that reduces."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype in DTYPES:
        for op in _operators(dtype):
            what = f"{getattr(op, 'op', op).name} of {dtype}"
            expected = _combined(op, of_all(dtype=dtype))
            mine = values(rank, dtype=dtype)
            dist.all_reduce(mine, op)
            check(mine, expected, f"all_reduce, {what}")

            mine = values(rank, dtype=dtype)
            dist.reduce(mine, size - 1, op)
            check(mine, expected if rank == size - 1 else values(rank, dtype=dtype), f"reduce, {what}")

            shape = (4 * size, 3)
            parts = _combined(op, of_all(shape, dtype)).tensor_split(size)
            output = torch.empty((4, 3), dtype=dtype)
            dist.reduce_scatter_tensor(output, values(rank, shape, dtype), op)
            check(output, parts[rank], f"reduce_scatter_tensor, {what}")

            output = torch.empty((4, 3), dtype=dtype)
            dist.reduce_scatter(output, list(values(rank, shape, dtype).tensor_split(size)), op)
            check(output, parts[rank], f"reduce_scatter, {what}")


def refused_reductions() -> list[str]:
    """What cannot be reduced: one clear error, before anything is sent."""
    seen = []
    for tensor, op in [
        (torch.ones(3), dist.ReduceOp.BAND),
        (torch.ones(3, dtype=torch.float64), dist.ReduceOp.BXOR),
        (torch.ones(3).to(torch.float8_e4m3fn), dist.ReduceOp.SUM),
        (torch.ones(3, dtype=torch.uint16), dist.ReduceOp.SUM),
        (torch.ones(3).to_sparse(), dist.ReduceOp.SUM),
    ]:
        try:
            dist.all_reduce(tensor, op)
        except ValueError as error:
            seen.append(f"{type(error).__name__}: {error}")
    mine = torch.ones(2)
    dist.all_reduce(mine)
    check(mine, torch.full((2,), float(dist.get_world_size())), "all_reduce after what was refused")
    return seen


# ---- moves, against gloo -------------------------------------------------------------------------------------------
def _moves(group: Any, dtype: torch.dtype) -> Tensors:
    """Every call that moves tensors; return all that it filled in."""
    rank, size = dist.get_rank(), dist.get_world_size()
    filled: Tensors = []

    def empty(*shape: int) -> torch.Tensor:
        filled.append(torch.zeros(shape, dtype=dtype))
        return filled[-1]

    mine = values(rank, dtype=dtype)
    dist.all_gather([empty(*SHAPE) for _ in range(size)], mine, group=group)
    dist.all_gather_into_tensor(empty(5 * size, 3), mine, group=group)
    for root in range(size):
        outputs = [empty(*SHAPE) for _ in range(size)]
        dist.gather(mine, outputs if rank == root else None, root, group=group)
        inputs = list(values(root, (size, 7), dtype).unbind())
        dist.scatter(empty(7), inputs if rank == root else None, root, group=group)
        filled.append(values(rank, dtype=dtype))
        dist.broadcast(filled[-1], root, group=group)
    dist.all_to_all_single(empty(2 * size, 3), values(rank, (2 * size, 3), dtype), group=group)
    given = [(rank + to) % 3 for to in range(size)]
    taken = [(by + rank) % 3 for by in range(size)]
    dist.all_to_all_single(empty(sum(taken), 2), values(rank, (sum(given), 2), dtype), taken, given, group=group)
    scalar = torch.tensor(rank + 1, dtype=dtype)
    dist.all_gather([empty() for _ in range(size)], scalar, group=group)
    return filled


def moves() -> None:
    """What every rank gets is what gloo gives it."""
    gloo = dist.new_group(backend="gloo")
    for dtype in [torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64, torch.bool]:
        pairs = zip(_moves(None, dtype), _moves(gloo, dtype), strict=True)
        for number, (seen, expected) in enumerate(pairs):
            check(seen, expected, f"move number {number} of {dtype}")


def moves_without_gloo() -> None:
    """What gloo cannot do: lists for all_to_all, uneven all_gather, dtypes that are moved as bytes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    outputs = [torch.zeros(by + 1) for by in range(size)]
    dist.all_to_all(outputs, [torch.full((rank + 1,), float(10 * rank + to)) for to in range(size)])
    for by, output in enumerate(outputs):
        check(output, torch.full((by + 1,), float(10 * by + rank)), f"all_to_all from {by}")

    outputs = [torch.zeros(by + 1, 2) for by in range(size)]
    dist.all_gather(outputs, torch.full((rank + 1, 2), float(rank)))
    for by, output in enumerate(outputs):
        check(output, torch.full((by + 1, 2), float(by)), f"all_gather of rows that differ, from {by}")

    stacked = torch.zeros(size, *SHAPE)
    dist.all_gather_into_tensor(stacked, values(rank))
    check(stacked, torch.stack(of_all()), "all_gather_into_tensor, stacked")

    shape = (4,)
    for dtype in (torch.uint16, torch.int32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64):
        outputs = [torch.zeros(shape, dtype=dtype) for _ in range(size)]
        dist.all_gather(outputs, values(rank, shape).to(dtype))
        for by, output in enumerate(outputs):
            check(output.to(torch.complex64), values(by, shape).to(torch.complex64), f"all_gather of {dtype} from {by}")
        mine = values(rank, shape).to(dtype)
        dist.broadcast(mine, 1)
        check(mine.to(torch.complex64), values(1, shape).to(torch.complex64), f"broadcast of {dtype}")


def awkward_tensors() -> None:
    """Tensors whose memory is not contiguous, that need gradients, are empty, scalars, or have many dimensions."""
    rank, size = dist.get_rank(), dist.get_world_size()
    expected = sum(of_all((6, 4)))
    turned = values(rank, (6, 4)).t().contiguous().t()
    assert not turned.is_contiguous()
    work = dist.all_reduce(turned, async_op=True)
    work.wait()
    check(turned, expected, "all_reduce of a transposed tensor")

    base = torch.zeros(6, 8)
    base[:, ::2] = values(rank, (6, 4))
    dist.all_reduce(base[:, ::2])
    check(base[:, ::2].contiguous(), expected, "all_reduce of every other column")
    assert not base[:, 1::2].any()

    parameter = torch.nn.Parameter(values(rank, (6, 4)))
    dist.all_reduce(parameter)
    check(parameter.detach(), expected, "all_reduce of a parameter")

    for shape in [(0,), (0, 3), (), (1,) * 10, (2,) * 10]:
        tensor = values(rank, shape)
        dist.all_reduce(tensor)
        check(tensor, sum(of_all(shape)), f"all_reduce of the shape {shape}")

    outputs = [torch.zeros(3, 4).t() for _ in range(size)]
    dist.all_gather(outputs, values(rank, (4, 3)))
    for by, output in enumerate(outputs):
        check(output, values(by, (4, 3)), "all_gather into transposed tensors")

    mine = values(rank, (LONG,))
    dist.all_reduce(mine)
    check(mine, sum(of_all((LONG,))), "all_reduce of a long tensor")


# ---- point to point ------------------------------------------------------------------------------------------------
def point_to_point() -> None:
    """send, recv, isend, irecv and batches, with tags."""
    rank, size = dist.get_rank(), dist.get_world_size()
    after, before = (rank + 1) % size, (rank - 1) % size
    if rank == 0:
        dist.send(values(0), 1)
    elif rank == 1:
        output = torch.zeros(SHAPE)
        assert dist.recv(output, 0) == 0
        check(output, values(0), "recv")

    first, second = torch.zeros(3), torch.zeros(LONG)
    works = [
        dist.irecv(second, before, tag=2),
        dist.isend(torch.full((3,), float(rank)), after, tag=1),
        dist.isend(values(rank, (LONG,)), after, tag=2),
        dist.irecv(first, before, tag=1),
    ]
    for work in works:
        assert work is not None
        work.wait()
    check(first, torch.full((3,), float(before)), "irecv of tag 1")
    check(second, values(before, (LONG,)), "irecv of tag 2")

    output = torch.zeros(SHAPE)
    sends = dist.P2POp(dist.isend, values(rank), after)
    receives = dist.P2POp(dist.irecv, output, before)
    for work in dist.batch_isend_irecv([sends, receives] if rank % 2 else [receives, sends]):
        work.wait()
    check(output, values(before), "batch_isend_irecv")

    if rank == 0:
        seen = []
        for _ in range(size - 1):
            output = torch.zeros(SHAPE)
            seen.append(dist.recv(output))
            check(output, values(seen[-1]), "recv from any rank")
        assert sorted(seen) == list(range(1, size))
    else:
        dist.send(values(rank), 0)

    given: list[Any] = [{"from": rank}, "text"] if rank == 0 else [None, None]
    if rank == 0:
        dist.send_object_list(given, 1)
    elif rank == 1:
        dist.recv_object_list(given, 0)
        assert given == [{"from": 0}, "text"]


# ---- objects, groups, meshes ---------------------------------------------------------------------------------------
def objects() -> None:
    """Collectives of Python's objects."""
    rank, size = dist.get_rank(), dist.get_world_size()
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * rank})
    assert gathered == [{"rank": by, "text": "x" * by} for by in range(size)]
    last = size - 1
    collected: list[Any] | None = [None] * size if rank == last else None
    dist.gather_object(rank, collected, last)
    assert rank != last or collected == list(range(size))
    shared: list[Any] = ["a", (1, 2)] if rank == 0 else [None, None]
    dist.broadcast_object_list(shared, 0)
    assert shared == ["a", (1, 2)]
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [f"for {to}" for to in range(size)] if rank == 0 else None, 0)
    assert mine == [f"for {rank}"]


def subgroups() -> None:
    """Groups of some ranks, made and removed at run time, and the barrier of each."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for turn in range(3):
        last_two = dist.new_group([size - 2, size - 1])
        if rank >= size - 2:
            mine = torch.full((4,), float(rank))
            dist.all_reduce(mine, group=last_two)
            check(mine, torch.full((4,), float(2 * size - 3)), f"all_reduce in a group, turn {turn}")
            mine = torch.full((1,), float(rank))
            dist.broadcast(mine, size - 2, group=last_two)
            check(mine, torch.full((1,), float(size - 2)), "broadcast from a rank of all")
            dist.barrier(group=last_two)
            dist.destroy_process_group(last_two)
    dist.barrier()
    dist.group.WORLD.monitored_barrier(datetime.timedelta(seconds=30))


def mesh() -> None:
    """DeviceMesh, DTensor and functional collectives."""
    from torch.distributed._functional_collectives import (
        all_gather_tensor,
        all_reduce,
        all_reduce_coalesced,
        all_to_all_single,
        broadcast,
        reduce_scatter_tensor,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    rank, size = dist.get_rank(), dist.get_world_size()
    whole = values(7, (size * 2, 3))
    device_mesh = init_device_mesh("cpu", (size, 1), mesh_dim_names=("across", "alone"))
    placed = distribute_tensor(whole, device_mesh["across"], [Shard(0)])
    check(placed.redistribute(placements=[Replicate()]).to_local(), whole, "DTensor, gathered")
    check(placed.sum().full_tensor(), whole.sum(), "DTensor, summed")
    group = device_mesh["across"].get_group()

    total = sum(of_all())
    check(all_reduce(values(rank), "sum", group) + 0, total, "functional all_reduce")
    check(all_reduce(values(rank), "avg", group) + 0, total / size, "functional average")
    check(all_gather_tensor(values(rank), 0, group) + 0, torch.cat(of_all()), "functional all_gather")
    shape = (size * 2, 3)
    parts = sum(of_all(shape)).tensor_split(size)
    check(reduce_scatter_tensor(values(rank, shape), "sum", 0, group) + 0, parts[rank], "functional reduce_scatter")
    taken = torch.cat([values(by, shape).tensor_split(size)[rank] for by in range(size)])
    check(all_to_all_single(values(rank, shape), None, None, group) + 0, taken, "functional all_to_all")
    check(broadcast(values(rank), size - 1, group) + 0, values(size - 1), "functional broadcast")
    for seen in all_reduce_coalesced([values(rank), values(rank)], "sum", group):
        check(seen + 0, total, "functional all_reduce_coalesced")


def coalesced() -> None:
    """Several operations as one, of one dtype and of several."""
    rank, size = dist.get_rank(), dist.get_world_size()
    world: Any = dist.group.WORLD
    mixed = [values(rank), values(rank, (2,), torch.int64), values(rank, (7,))]
    world.allreduce_coalesced(mixed).wait()
    for seen, shape, dtype in zip(mixed, [SHAPE, (2,), (7,)], [torch.float32, torch.int64, torch.float32], strict=True):
        check(seen, sum(of_all(shape, dtype)), "allreduce_coalesced")

    with dist._coalescing_manager():
        first, second = values(rank), values(rank, (2,))
        dist.all_reduce(first)
        dist.all_reduce(second)
    check(first, sum(of_all()), "first of the coalescing manager")
    check(second, sum(of_all((2,))), "second of the coalescing manager")

    outputs = [torch.zeros(5 * size, 3), torch.zeros(2 * size)]
    with dist._coalescing_manager(async_ops=True) as manager:
        dist.all_gather_into_tensor(outputs[0], values(rank))
        dist.all_gather_into_tensor(outputs[1], values(rank, (2,)))
    manager.wait()
    check(outputs[0], torch.cat(of_all()), "all_gather of the coalescing manager")
    check(outputs[1], torch.cat(of_all((2,))), "second all_gather of the coalescing manager")

    outputs = [torch.zeros(2, 3), torch.zeros(1)]
    with dist._coalescing_manager():
        dist.reduce_scatter_tensor(outputs[0], values(rank, (2 * size, 3)))
        dist.reduce_scatter_tensor(outputs[1], values(rank, (size,)))
    check(outputs[0], sum(of_all((2 * size, 3))).tensor_split(size)[rank], "reduce_scatter of the coalescing manager")
    check(outputs[1], sum(of_all((size,))).tensor_split(size)[rank], "second reduce_scatter of the coalescing manager")

    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
        mine, theirs = values(rank, (3,)), values(rank, (4,))
        world.broadcast([mine], 0)
        world.allreduce([theirs])
    manager.wait()
    check(mine, values(0, (3,)), "broadcast between start and end")
    check(theirs, sum(of_all((4,))), "allreduce between start and end")

    lists = [[torch.zeros(2), torch.zeros(3)] for _ in range(size)]
    world.allgather_coalesced(lists, [values(rank, (2,)), values(rank, (3,))]).wait()
    for by, (short, long) in enumerate(lists):
        check(short, values(by, (2,)), "allgather_coalesced")
        check(long, values(by, (3,)), "allgather_coalesced")


# ---- works and futures ---------------------------------------------------------------------------------------------
def works() -> None:
    """Several operations on their way; works and futures that are waited for in any order, or not at all."""
    rank = dist.get_rank()
    tensors = [values(rank, (1000 + number,)) for number in range(20)]
    running = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in reversed(running):
        assert work is not None
        work.wait()
        assert work.is_completed()
        assert work.is_success()
    for tensor in tensors:
        check(tensor, sum(of_all(tuple(tensor.shape))), "all_reduce, waited for backwards")

    tensors = [values(rank, (100 + number,)) for number in range(5)]
    futures = [dist.all_reduce(tensor, async_op=True).get_future() for tensor in tensors]
    (last,) = futures[-1].wait()
    check(last, sum(of_all((104,))), "the last future")
    doubled = futures[0].then(lambda future: future.value()[0] * 2)
    check(doubled.wait(), 2 * sum(of_all((100,))), "what a future's callback returns")
    collected = torch.futures.collect_all(futures).wait()
    assert len(collected) == 5

    # A callback that begins an operation and waits for it, as PowerSGD's do.
    future = dist.all_reduce(values(rank), async_op=True).get_future()

    def again(done: Any) -> torch.Tensor:
        inner = dist.all_reduce(done.value()[0], async_op=True).get_future()
        return inner.wait()[0] + 0

    check(
        future.then(again).then(lambda done: done.value() * 1).wait(),
        dist.get_world_size() * sum(of_all()),
        "an operation in a callback",
    )
    dist.all_reduce(values(rank), async_op=True)  # nobody waits for it
    dist.barrier()


def names() -> list[str]:
    """What PyTorch says of the group."""
    world: Any = dist.group.WORLD
    assert dist.get_backend() == "distnet"
    assert dist.is_distnet_available() if hasattr(dist, "is_distnet_available") else True
    assert dist.get_process_group_ranks(world) == list(range(dist.get_world_size()))
    return [world.name(), world.group_name, world._get_backend_name(), str(world.size())]


CASES: list[Callable[[], Any]] = [
    reductions,
    moves,
    moves_without_gloo,
    awkward_tensors,
    point_to_point,
    objects,
    subgroups,
    mesh,
    coalesced,
    works,
]
