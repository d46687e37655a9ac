"""Plain JAX: gradients out and parameters in as one function within `jit`, asynchronously.

    distnet run -n 2 --threads-per-worker 1 examples/jax/plain.py

A network learns whether a point of the plane lies inside a ring, on it or outside. Each rank prints the mean loss of
each of its epochs, which falls, and in the end the accuracy of the common model on new points: more than 90 %.
"""

import sys

import jax
import jax.numpy as jnp

import distnet.jax

POINTS, BATCH, SIZES = 4_096, 64, [(2, 64), (64, 64), (64, 3)]


def rings(seed):
    """Return points of the plane, and whether each lies inside the ring (0), on it (1) or outside (2)."""
    points = jax.random.uniform(jax.random.key(seed), (POINTS, 2), minval=-2, maxval=2)
    return points, jnp.digitize(jnp.linalg.norm(points, axis=1), jnp.array([0.8, 1.5]))


def logits(layers, points):
    """Return the network's answer to points."""
    for layer in layers[:-1]:
        points = jax.nn.relu(points @ layer["kernel"] + layer["bias"])
    return points @ layers[-1]["kernel"] + layers[-1]["bias"]


def loss_of(layers, points, labels):
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits(layers, points)), labels[:, None], axis=1).mean()


def main(epochs):
    """Train as one worker."""
    make = jax.nn.initializers.he_normal()
    layers = [{"kernel": make(jax.random.key(n), size), "bias": jnp.zeros(size[1])} for n, size in enumerate(SIZES)]
    with distnet.jax.join(layers, optimizer=distnet.Adam(0.005)) as job:

        @jax.jit
        def step(layers, points, labels):
            loss, gradients = jax.value_and_grad(loss_of)(layers, points, labels)
            return job.push_pull(gradients), loss

        layers, (points, labels) = job.parameters, rings(seed=1)  # rank 0's layers
        for epoch in range(epochs):
            losses = []
            for batch in distnet.shard_indices(POINTS, job.rank, job.size, seed=1, epoch=epoch).reshape(-1, BATCH):
                layers, loss = step(layers, points[batch], labels[batch])
                losses.append(float(loss))
            print(f"rank {job.rank}: epoch {epoch + 1}: loss {sum(losses) / len(losses):.5f}", flush=True)
        layers, (points, labels) = job.finish(), rings(seed=2)  # once all ranks are done: the same layers on each
        print(f"rank {job.rank}: accuracy on new points: {(logits(layers, points).argmax(1) == labels).mean():.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
