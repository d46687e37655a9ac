"""A PyTorch model on two workers, over the plain client: does a point lie inside a ring, on it, or outside?

    distnet run -n 2 --threads-per-worker 1 --optimizer 'adam(0.005)' examples/pytorch_rings.py

PyTorch computes gradients and the server steps the parameters, so there is no torch.optim here. Each worker prints its
mean loss of each epoch, and in the end rank 0 the accuracy of the common model on new points: about 97 %.
With --semantics sync the losses fall more smoothly: otherwise the server applies gradients an update or two late.
"""

import torch
from torch import nn

import distnet

POINTS, BATCH, EPOCHS = 4_096, 64, 10


def rings(seed):
    """Return points of the plane, and whether each lies inside the ring (0), on it (1) or outside (2)."""
    points = 4 * torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(seed)) - 2
    distance = points.norm(dim=1)
    return points, (distance > 0.8).long() + (distance > 1.5).long()


def load(model, arrays):
    """Copy the server's parameters into the model."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


def gradients(model, points, labels):
    """Return the loss of a batch, and its gradient by the parameters' names."""
    loss = nn.functional.cross_entropy(model(points), labels)
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def main():
    """Train as one worker of `distnet run`."""
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    points, labels = rings(seed=1)
    with distnet.connect(parameters=dict(model.named_parameters())) as client:  # rank 0's values are used
        load(model, client.pull())
        for epoch in range(EPOCHS):
            mine = torch.from_numpy(distnet.shard_indices(POINTS, client.rank, client.workers, seed=1, epoch=epoch))
            losses = []
            for batch in mine.split(BATCH):
                loss, gradient = gradients(model, points[batch], labels[batch])
                load(model, client.push_pull(gradient))
                losses.append(loss)
            print(f"rank {client.rank}: epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")
        load(model, client.finish())  # waits until all ranks are done: the same model for each
        if client.rank == 0:
            points, labels = rings(seed=2)
            right = (model(points).argmax(dim=1) == labels).float().mean()
            print(f"accuracy on new points: {right:.1%}")


if __name__ == "__main__":
    main()
