"""The same training of a small model in one process and by workers over a server, for the tests of PyTorch."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import distnet
from distnet.torch import DistributedOptimizer
from distnet.torch.parameters import Parameters
from distnet.torch.translation import translated

STEPS, WORKERS, BATCH = 8, 2, 16

Share = Callable[[int], tuple[Any, Any]]


def make_model(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).to(dtype)


def batch(step: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(BATCH, 10, generator=generator), torch.randn(BATCH, 3, generator=generator)


def share_of(rank: int) -> Share:
    """Return what gives a worker its part of each batch."""
    size = BATCH // WORKERS
    return lambda step: tuple(part[rank * size : (rank + 1) * size] for part in batch(step))


def loss_of(model: Any, x: Any, y: Any) -> Any:
    parameter = next(model.parameters())
    return torch.nn.functional.mse_loss(model(x.to(parameter.dtype)), y.to(parameter.dtype))


def plain_steps(model: Any, optimizer: Any, share: Share, scheduler: Any = None) -> None:
    """Train as most scripts do."""
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *share(step)).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A training, as a script has it: the same lines for one process and for workers.

    Attributes:
        optimizer: makes PyTorch's optimizer of a model.
        steps: trains with model, optimizer, share of the data and scheduler.
        scheduler: makes one of an optimizer.
        scheduler_first: whether it is made before the optimizer is distributed.
        model: makes the model.
    """

    optimizer: Callable[[Any], Any]
    steps: Callable[..., None] = plain_steps
    scheduler: Callable[[Any], Any] | None = None
    scheduler_first: bool = False
    model: Callable[[], Any] = make_model

    def run(self, share: Share, distribute: Callable[[Any, Any], Any] = lambda optimizer, model: optimizer) -> Any:
        model = self.model()
        optimizer = self.optimizer(model)
        scheduler = self.scheduler(optimizer) if self.scheduler and self.scheduler_first else None
        optimizer = distribute(optimizer, model)
        if self.scheduler and not self.scheduler_first:
            scheduler = self.scheduler(optimizer)
        self.steps(model, optimizer, share, scheduler)
        return model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a training by workers.

    Attributes:
        models: of each rank.
        stats: of the server, at the end.
    """

    models: Sequence[Any]
    stats: Any


def in_threads(work: Callable[[int], Any], workers: int = WORKERS) -> list[Any]:
    """Do the work of each rank in a thread of its own, and raise what any of them raised."""
    results: list[Any] = [None] * workers
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def by_workers(training: Training, *, semantics: str = "sync", servers: int | None = None, **how: Any) -> Outcome:
    """Run a training by workers that each have a part of every batch."""
    model = training.model()
    optimizer = training.optimizer(model)
    if training.scheduler and training.scheduler_first:
        training.scheduler(optimizer)
    parameters = Parameters(optimizer, model)
    said: dict[str, Any] = {}
    if how.get("update", "server") == "server":
        translation = translated(optimizer, parameters.names)
        said = {"optimizer": translation.optimizer, "groups": translation.groups}
    initial = parameters.initial()
    with distnet.ParameterServer(initial, semantics=semantics, servers=servers, workers=WORKERS, **said) as server:

        def work(rank: int) -> Any:
            with distnet.connect(server.address, rank=rank) as client:
                made: list[Any] = []

                def distribute(optimizer: Any, model: Any) -> Any:
                    made.append(DistributedOptimizer(optimizer, model, client=client, **how))
                    return made[0]

                model = training.run(share_of(rank), distribute)
                made[0].finish()
                return model

        models = in_threads(work)
        return Outcome(models=models, stats=server.stats())


def assert_same(model: Any, other: Any, tolerance: float = 1e-6) -> None:
    """Check that two models have the same parameters."""
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    for (name, parameter), expected in pairs:
        np.testing.assert_allclose(
            parameter.detach().float().numpy(),
            expected.detach().float().numpy(),
            rtol=tolerance,
            atol=tolerance,
            err_msg=name,
        )
