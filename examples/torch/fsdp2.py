"""FSDP2: `fully_shard` leaves each rank its share of every parameter, gradient and optimizer state.

    torchrun --nproc_per_node 2 examples/torch/fsdp2.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/fsdp2.py

A small transformer learns to name the largest of eight digits. Each rank prints its mean loss of every 50 steps and,
in the end, how much of the model it keeps: half, on two ranks. `--backend gloo` prints the same losses.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

DIGITS, BATCH, WIDTH = 8, 32, 32


def main(backend, steps):
    """Train as one rank."""
    dist.init_process_group(backend)
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0, batch_first=True) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(10, WIDTH), *layers, nn.Flatten(), nn.Linear(DIGITS * WIDTH, 10))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    random, losses = torch.Generator().manual_seed(rank), []
    for step in range(1, steps + 1):
        digits = torch.randint(10, (BATCH, DIGITS), generator=random)
        loss = nn.functional.cross_entropy(model(digits), digits.amax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            print(f"rank {rank}: step {step}: loss {sum(losses[-50:]) / len(losses[-50:]):.5f}", flush=True)
    kept = sum(parameter.to_local().numel() for parameter in model.parameters())
    print(f"rank {rank}: keeps {kept} of {sum(parameter.numel() for parameter in model.parameters())} parameters")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.manual_seed(1)  # FSDP shards what each rank has made: the same everywhere
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--steps", type=int, default=200)
    main(**vars(parser.parse_args()))
