"""ZeroRedundancyOptimizer: each rank keeps the state of Adam for its share of the parameters alone.

    torchrun --nproc_per_node 2 examples/torch/zero.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/zero.py

A network learns whether a point of the plane lies inside a ring, on it or outside. Each rank prints its mean loss of
each epoch and, in the end, how much of Adam's state it keeps: about half. `--backend gloo` prints the same losses.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

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
    layers = [nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)]
    model = DistributedDataParallel(nn.Sequential(*layers))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=0.005)
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
    kept = sum(state["exp_avg"].numel() for state in optimizer.optim.state.values())
    print(f"rank {rank}: keeps Adam's state of {kept} of {sum(p.numel() for p in model.parameters())} parameters")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.manual_seed(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
