"""A Keras model on two workers: which of two interleaved spirals a point lies on.

    distnet run -n 2 --threads-per-worker 1 --optimizer 'adam(0.005)' examples/keras_spirals.py

The optimizer runs on the server, so the model is never compiled. Each worker prints its mean loss of each epoch, which
falls, and in the end rank 0 the accuracy of the common model on points that nobody has trained on: nearly 100 %.
"""

import os

import keras
import numpy as np

import distnet
from distnet.tensorflow import TensorFlowWorker, prepare

POINTS, BATCH, EPOCHS = 4_096, 64, 10


def spirals(seed):
    """Return points of two spirals, and which spiral each lies on."""
    random = np.random.default_rng(seed)
    label = random.integers(2, size=POINTS)
    radius = random.uniform(0.2, 1, size=POINTS)
    angle = 9 * radius + np.pi * label
    points = radius * np.stack([np.cos(angle), np.sin(angle)]) + random.normal(scale=0.04, size=(2, POINTS))
    return points.T.astype("float32"), label


def main():
    """Train as one worker of `distnet run`."""
    rank = int(os.environ.get("DISTNET_RANK", "0"))  # `distnet run` sets it
    device = prepare(rank=rank)  # before TensorFlow starts: this rank's GPU (not tried on one yet), or the CPU
    model = keras.Sequential(
        [
            keras.layers.Input((2,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(2),
        ]
    )
    points, labels = spirals(seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    client = distnet.connect(parameters={v.path: v.numpy() for v in model.trainable_variables})  # rank 0's are used
    with client, TensorFlowWorker(model, client, loss=loss, device=device) as worker:
        for epoch in range(EPOCHS):
            mine = distnet.shard_indices(POINTS, rank, client.workers, seed=1, epoch=epoch)
            losses = [worker.step((points[batch], labels[batch])).loss for batch in np.split(mine, len(mine) // BATCH)]
            print(f"rank {rank}: epoch {epoch + 1}: loss {np.mean(losses):.3f}")
        worker.finish()  # waits until all ranks are done, and gives each the same model
    if rank == 0:
        points, labels = spirals(seed=2)
        right = (model.predict(points, verbose=0).argmax(axis=1) == labels).mean()
        print(f"accuracy on new points: {right:.1%}")


if __name__ == "__main__":
    main()
