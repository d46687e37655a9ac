"""A Flax network with local updates: each worker steps by optax, and every 8 steps its change goes to the server.

    distnet run -n 2 --semantics sync --threads-per-worker 1 examples/jax/flax_local.py

The network learns which quarter of a noisy picture is brighter. The server adds the mean of all workers' changes. Each
rank prints the mean loss of its epochs, which falls, and in the end the accuracy on new pictures: more than 90 %.
"""

import sys

import jax
import numpy as np
import optax
from flax import linen as nn

import distnet.jax

PICTURES, BATCH = 2_048, 32
NETWORK = nn.Sequential([nn.Conv(16, (5, 5), strides=4), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(4)])


def pictures(seed):
    """Return pictures of 16 x 16 points, and which of their quarters is brighter."""
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=PICTURES)
    bright = np.kron(np.eye(4)[labels].reshape(-1, 2, 2), np.ones((8, 8)))
    return (random.normal(size=bright.shape) + 0.5 * bright).astype("float32")[..., None], labels


def loss_of(weights, images, labels):
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(NETWORK.apply(weights, images), labels).mean()


def main(epochs):
    """Train as one worker."""
    images, labels = pictures(seed=1)
    weights = NETWORK.init(jax.random.key(0), images)
    with distnet.jax.DistributedOptimizer(optax.adam(0.003), weights, update="local", every=8) as optimizer:
        rank, workers = optimizer.client.rank, optimizer.client.workers

        @jax.jit
        def step(weights, state, images, labels):
            loss, gradients = jax.value_and_grad(loss_of)(weights, images, labels)
            updates, state = optimizer.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state, loss

        weights, state = optimizer.parameters, optimizer.init(optimizer.parameters)  # rank 0's
        for epoch in range(epochs):
            losses, mine = [], distnet.shard_indices(PICTURES, rank, workers, seed=1, epoch=epoch)
            for batch in mine.reshape(-1, BATCH):
                weights, state, loss = step(weights, state, images[batch], labels[batch])
                losses.append(float(loss))
            print(f"rank {rank}: epoch {epoch + 1}: loss {sum(losses) / len(losses):.5f}", flush=True)
        found, labels = NETWORK.apply(optimizer.finish(state, weights), pictures(seed=2)[0]), pictures(seed=2)[1]
        print(f"rank {rank}: accuracy on new pictures: {(found.argmax(axis=1) == labels).mean():.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
