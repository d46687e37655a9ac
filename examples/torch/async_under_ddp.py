"""Asynchronous training under DistributedDataParallel: averaging is off, and a parameter server steps the optimizer.

    torchrun --nproc_per_node 2 examples/torch/async_under_ddp.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/async_under_ddp.py

A network learns whether a point of the plane lies inside a ring, on it or outside. No rank waits for another before
`finish()`. Each prints its mean loss of each epoch, and in the end the accuracy of the common model: about 98 %. Under
torchrun rank 0 starts the server, as a process of its own; under `distnet run` there is one.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import distnet.torch

POINTS, BATCH = 4_096, 64


def rings(seed):
    """Return points of the plane, and whether each lies inside the ring (0), on it (1) or outside (2)."""
    points = 4 * torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(seed)) - 2
    distance = points.norm(dim=1)
    return points, (distance > 0.8).long() + (distance > 1.5).long()


def main(backend, epochs):
    """Train as one rank."""
    dist.init_process_group(backend)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    layers = [nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]
    model = DistributedDataParallel(nn.Sequential(*layers))
    model.register_comm_hook(None, distnet.torch.leave_unreduced)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    optimizer = distnet.torch.DistributedOptimizer(optimizer, model, semantics="async-lockfree")
    points, labels = rings(seed=1)
    for epoch in range(epochs):
        mine = torch.randperm(POINTS, generator=torch.Generator().manual_seed(epoch))[rank::ranks]
        losses = []
        for batch in mine.split(BATCH):
            loss = nn.functional.cross_entropy(model(points[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"rank {rank}: epoch {epoch + 1}: loss {sum(losses) / len(losses):.5f}", flush=True)
    optimizer.finish()  # waits until all ranks are done: the same model for each
    points, labels = rings(seed=2)
    print(f"rank {rank}: accuracy on new points: {(model(points).argmax(1) == labels).float().mean():.2%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--epochs", type=int, default=10)
    main(**vars(parser.parse_args()))
