"""A loop with accelerate: DistNet's process group is made before the Accelerator, which takes what is there.

    torchrun --nproc_per_node 2 examples/torch/accelerate_loop.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/accelerate_loop.py

A network learns whether a point of the plane lies inside a ring, on it or outside. Each rank prints its mean loss of
each epoch, and in the end rank 0 the accuracy on all points, gathered from the ranks: about 97 %. With `--backend
gloo` the same script runs on PyTorch's own backend and prints the same losses.
"""

import argparse

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

POINTS, BATCH = 4_096, 64


def rings():
    """Return points of the plane, and whether each lies inside the ring (0), on it (1) or outside (2)."""
    points = 4 * torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(1)) - 2
    distance = points.norm(dim=1)
    return TensorDataset(points, (distance > 0.8).long() + (distance > 1.5).long())


def main(backend, epochs):
    """Train as one rank."""
    dist.init_process_group(backend)
    accelerator = Accelerator(cpu=True)
    set_seed(1)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * POINTS // BATCH)
    loader = DataLoader(rings(), batch_size=BATCH, shuffle=True)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    for epoch in range(epochs):
        losses = []
        for points, labels in loader:
            loss = nn.functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        print(f"rank {accelerator.process_index}: epoch {epoch + 1}: loss {mean:.5f}", flush=True)
    right = [accelerator.gather_for_metrics(model(points).argmax(1) == labels) for points, labels in loader]
    accelerator.print(f"accuracy: {torch.cat(right).float().mean():.1%}")
    accelerator.end_training()  # it ends the process group, too


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
