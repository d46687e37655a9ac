"""DDP with its hooks and modes, FSDP2, ZeRO and checkpoints: each against one process that sees the whole batch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

STEPS = 4
BATCH = 8  # of each rank
CLOSE = {"rtol": 0.0, "atol": 1e-6}

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.nn.Module, Batch], torch.Tensor]


class Sometimes(torch.nn.Module):  # type: ignore[misc]  # PyTorch is Any here
    """A model with a layer that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.always = torch.nn.Linear(6, 6)
        self.seldom = torch.nn.Linear(6, 6)
        self.last = torch.nn.Linear(6, 3)
        self.use = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers in use."""
        x = self.always(x)
        return self.last(self.seldom(x) if self.use else x)


def model(kind: str = "plain") -> torch.nn.Module:
    """Return a model, the same on every rank."""
    torch.manual_seed(5)
    if kind == "sometimes":
        return Sometimes()
    layers: list[torch.nn.Module] = [torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)]
    if kind == "wide":
        layers = [torch.nn.Linear(6, 128), torch.nn.Tanh(), torch.nn.Linear(128, 256), torch.nn.Linear(256, 3)]
    return torch.nn.Sequential(*layers)


def batches(steps: int = STEPS) -> list[Batch]:
    """Return the whole batches of a run, of all ranks' examples."""
    random = torch.Generator().manual_seed(11)
    size = BATCH * dist.get_world_size()
    return [(torch.randn(size, 6, generator=random), torch.randn(size, 3, generator=random)) for _ in range(steps)]


def mine(batch: Batch) -> Batch:
    """Return this rank's examples."""
    x, y = batch
    part = slice(dist.get_rank() * BATCH, (dist.get_rank() + 1) * BATCH)
    return x[part], y[part]


def loss_of(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean squared error."""
    x, y = batch
    return torch.nn.functional.mse_loss(module(x), y)


def train(module: torch.nn.Module, given: list[Batch], make: Any = torch.optim.SGD, **settings: Any) -> None:
    """Take a step for each batch."""
    optimizer = make(module.parameters(), **(settings or {"lr": 0.1}))
    for batch in given:
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()


def expected(kind: str = "plain") -> torch.nn.Module:
    """Return the model that one process trains on the whole batches."""
    alone = model(kind)
    train(alone, batches())
    return alone


def assert_same(seen: torch.nn.Module, wanted: torch.nn.Module, **tolerance: float) -> None:
    """Fail unless all parameters and buffers are as close as the tolerance says."""
    wanted_state = wanted.state_dict()
    seen_state = {name.removeprefix("module."): value for name, value in seen.state_dict().items()}
    assert seen_state.keys() == wanted_state.keys()
    for name, value in seen_state.items():
        torch.testing.assert_close(
            value, wanted_state[name], **(tolerance or CLOSE), msg=partial("{}: {}".format, name)
        )


def assert_alike(module: torch.nn.Module) -> None:
    """Fail unless all ranks have the same bits."""
    flat = torch.cat([value.detach().reshape(-1).double() for value in module.state_dict().values()])
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    for other in everyone:
        assert torch.equal(other, flat), "ranks have different parameters"


# ---- DDP -----------------------------------------------------------------------------------------------------------
def ddp(**settings: Any) -> None:
    """DDP equals one process on the whole batch."""
    module = DistributedDataParallel(model("wide"), bucket_cap_mb=0.05, **settings)
    train(module, [mine(batch) for batch in batches()])
    assert_same(module, expected("wide"))
    assert_alike(module)


def ddp_hooks() -> None:
    """The hooks that come with PyTorch: written in Python and in C++, and PowerSGD's, whose callbacks communicate."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    wanted = expected("wide")

    def hooked(register: Callable[[DistributedDataParallel], None]) -> DistributedDataParallel:
        module = DistributedDataParallel(model("wide"), bucket_cap_mb=0.05)
        register(module)
        train(module, [mine(batch) for batch in batches()])
        assert_alike(module)
        return module

    assert_same(hooked(lambda m: m.register_comm_hook(None, default_hooks.allreduce_hook)), wanted)
    halves = {"rtol": 0.0, "atol": 2e-3}
    assert_same(hooked(lambda m: m.register_comm_hook(None, default_hooks.fp16_compress_hook)), wanted, **halves)
    wrapped = default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook)
    assert_same(hooked(lambda m: m.register_comm_hook(None, wrapped)), wanted, **halves)
    kind = dist.BuiltinCommHookType
    assert_same(hooked(lambda m: m._register_builtin_comm_hook(kind.ALLREDUCE)), wanted)

    def power_sgd(module: DistributedDataParallel) -> None:
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=1
        )
        module.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    module = hooked(power_sgd)
    untrained = dict(model("wide").named_parameters())
    for name, parameter in module.module.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, untrained[name])


def ddp_no_sync() -> None:
    """Gradients accumulate without communication; the last pass averages what all have accumulated."""
    module, alone = DistributedDataParallel(model()), model()
    first, second = batches(2)
    with module.no_sync():
        loss_of(module, mine(first)).backward()
    loss_of(module, mine(second)).backward()
    loss_of(alone, first).backward()
    loss_of(alone, second).backward()
    for seen, wanted in zip(module.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(seen.grad, wanted.grad, **CLOSE)


def ddp_unused() -> None:
    """Parameters that no loss depends on, on some ranks or on all."""
    module = DistributedDataParallel(model("sometimes"), find_unused_parameters=True)
    alone = model("sometimes")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (module, alone)]
    for step, batch in enumerate(batches()):
        uses = [step % 2 == 0 or rank == 0 for rank in range(dist.get_world_size())]
        if step == STEPS - 1:
            uses = [False] * len(uses)
        for optimizer in optimizers:
            optimizer.zero_grad()
        module.module.use = uses[dist.get_rank()]
        loss_of(module, mine(batch)).backward()
        parts = zip(batch[0].split(BATCH), batch[1].split(BATCH), strict=True)
        for use, part in zip(uses, parts, strict=True):
            alone.use = use
            (loss_of(alone, part) / len(uses)).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same(module, alone)


def ddp_join() -> None:
    """Ranks with fewer batches join early: their gradients count as zeros, and the last ones go on."""
    module, alone = DistributedDataParallel(model()), model()
    rank, size = dist.get_rank(), dist.get_world_size()
    given = batches(4)
    steps = [2 + r for r in range(size)]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with module.join(divide_by_initial_world_size=True):
        for batch in given[: steps[rank]]:
            optimizer.zero_grad()
            loss_of(module, mine(batch)).backward()
            optimizer.step()
    reference = torch.optim.SGD(alone.parameters(), lr=0.1)
    for step, batch in enumerate(given[: max(steps)]):
        reference.zero_grad()
        for r, part in enumerate(zip(batch[0].split(BATCH), batch[1].split(BATCH), strict=True)):
            if step < steps[r]:
                (loss_of(alone, part) / size).backward()
        reference.step()
    assert_same(module, alone)


def ddp_buffers() -> None:
    """Batch norm's buffers go from rank 0 to all; synchronised batch norm is for GPUs alone in PyTorch."""
    torch.manual_seed(dist.get_rank())
    module = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    )
    train(module, [mine(batch) for batch in batches()])
    with torch.no_grad():
        module(batches(1)[0][0])  # a forward pass begins with the buffers of rank 0, and all see the same batch
    assert_alike(module)


def ddp_compiled() -> None:
    """A compiled DDP model equals one process."""
    module = torch.compile(DistributedDataParallel(model()))
    train(module, [mine(batch) for batch in batches()])
    wanted = expected()
    seen = {name.removeprefix("_orig_mod.module."): value for name, value in module.state_dict().items()}
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(seen[name], value, **CLOSE)


# ---- what is sharded -----------------------------------------------------------------------------------------------
def fsdp2() -> None:
    """fully_shard equals one process, also with parameters in bfloat16 for the computation."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    wanted = expected("wide")
    for policy, tolerance in [
        (MixedPrecisionPolicy(), CLOSE),
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32), {"rtol": 0.0, "atol": 5e-2}),
    ]:
        module = model("wide")
        for layer in module:
            if isinstance(layer, torch.nn.Linear):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        train(module, [mine(batch) for batch in batches()])
        for name, parameter in module.named_parameters():
            whole = parameter.full_tensor()
            torch.testing.assert_close(whole, wanted.get_parameter(name).detach(), **tolerance)


def zero() -> None:
    """ZeroRedundancyOptimizer equals the optimizer that it shards, and collects its state."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    module = DistributedDataParallel(model())
    alone = model()
    optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.Adam, lr=0.01)
    reference = torch.optim.Adam(alone.parameters(), lr=0.01)
    for batch in batches():
        optimizer.zero_grad()
        loss_of(module, mine(batch)).backward()
        optimizer.step()
        reference.zero_grad()
        loss_of(alone, batch).backward()
        reference.step()
    assert_same(module, alone, rtol=0.0, atol=1e-5)  # Adam divides by the root of what is near zero
    optimizer.consolidate_state_dict(0)
    if dist.get_rank() == 0:
        assert len(optimizer.state_dict()["state"]) == len(list(alone.parameters()))


def checkpoint() -> None:
    """A distributed checkpoint of a sharded model comes back, also into one that is not sharded."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    folder = scratch()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    module = fully_shard(model(), mesh=mesh)
    train(module, [mine(batch) for batch in batches()])
    state = get_model_state_dict(module)
    dcp.save({"model": state}, checkpoint_id=folder)
    torch.manual_seed(99)
    fresh = fully_shard(copy.deepcopy(model("plain")), mesh=mesh)
    loaded = {"model": get_model_state_dict(fresh)}
    dcp.load(loaded, checkpoint_id=folder)
    set_model_state_dict(fresh, loaded["model"])
    wanted = expected()
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(parameter.full_tensor(), wanted.get_parameter(name).detach(), **CLOSE)
    dist.barrier()
    whole = {"model": model("plain").state_dict()}
    dcp.load(whole, checkpoint_id=folder)
    for name, value in whole["model"].items():
        torch.testing.assert_close(value, wanted.state_dict()[name], **CLOSE)
    running = dcp.async_save({"model": state}, checkpoint_id=str(Path(folder) / "later"))
    running.result()


def functional_in_graph() -> None:
    """A compiled function with collectives in it."""
    from torch.distributed._functional_collectives import all_reduce

    group: Any = dist.group.WORLD

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return all_reduce(x * 2, "sum", group) + 1

    compiled = torch.compile(doubled)
    size = dist.get_world_size()
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0 * size + 1))


def scratch() -> str:
    """Return a folder that all ranks share."""
    shared: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, 0)
    return str(shared[0])
