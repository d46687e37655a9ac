"""DistributedDataParallel: the script of any user of it, with DistNet's name as the backend.

    torchrun --nproc_per_node 2 examples/torch/ddp.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/ddp.py

A small convolutional network learns which quarter of a noisy picture is brighter than the others. Each rank prints the
mean loss of its own examples, which falls, and in the end rank 0 the accuracy on new pictures: more than 95 %. With
`--backend gloo` the same script runs on PyTorch's own backend and prints the same losses.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

PICTURES, BATCH = 2_048, 32


def pictures(seed):
    """Return pictures of 16 x 16 points, and which of their quarters is brighter."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (PICTURES,), generator=random)
    bright = nn.functional.one_hot(labels, 4).view(PICTURES, 1, 2, 2).float()
    noise = torch.randn(PICTURES, 1, 16, 16, generator=random)
    return TensorDataset(noise + 0.5 * nn.functional.interpolate(bright, size=16), labels)


def main(backend, epochs):
    """Train as one rank."""
    dist.init_process_group(backend)
    layers = [nn.Conv2d(1, 16, 5, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)]
    model = DistributedDataParallel(nn.Sequential(*layers))  # rank 0's parameters are used
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = pictures(seed=1)
    sampler = DistributedSampler(data)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        losses = []
        for images, labels in DataLoader(data, batch_size=BATCH, sampler=sampler):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"rank {dist.get_rank()}: epoch {epoch + 1}: loss {sum(losses) / len(losses):.5f}", flush=True)
    if dist.get_rank() == 0:
        images, labels = pictures(seed=2).tensors
        print(f"accuracy on new pictures: {(model.module.eval()(images).argmax(1) == labels).float().mean():.1%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.manual_seed(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--epochs", type=int, default=3)
    main(**vars(parser.parse_args()))
