"""A stock convolutional network of Keras, with plain `fit`, on whichever backend Keras has.

    distnet run -n 2 --semantics sync --threads-per-worker 1 examples/keras/pictures.py
    KERAS_BACKEND=torch distnet run -n 2 --semantics sync --threads-per-worker 1 examples/keras/pictures.py

A network with batch normalisation and dropout learns which quarter of a noisy picture is brighter than the others.
Rank 0 writes the best model and a log into the folder where it was started. Each rank prints the losses of its epochs,
which are those of both ranks together and fall, and in the end the common model's accuracy on new pictures: over 90 %.
"""

import sys

import keras
import numpy as np

import distnet.keras

PICTURES, BATCH = 2_048, 32


def pictures(seed):
    """Return pictures of 16 x 16 points, and which of their quarters is brighter."""
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=PICTURES)
    bright = np.kron(np.eye(4)[labels].reshape(-1, 2, 2), np.ones((8, 8)))
    noise = random.normal(size=(PICTURES, 16, 16))
    return (noise + 0.5 * bright).astype("float32")[..., None], labels


def main(epochs):
    """Train as one worker."""
    layers = keras.layers
    model = keras.Sequential([layers.Conv2D(16, 5, strides=4), layers.BatchNormalization(), layers.ReLU()])
    for layer in layers.Dropout(0.1), layers.Flatten(), layers.Dense(4, activation="softmax"):
        model.add(layer)
    model.build((None, 16, 16, 1))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    distnet.keras.distribute(model)  # rank 0's parameters are used
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(patience=2),
        keras.callbacks.ModelCheckpoint("pictures.keras", save_best_only=True),
        keras.callbacks.CSVLogger("pictures.csv"),
    ]
    data, validation = (distnet.keras.shard(pictures(seed)) for seed in (1, 2))
    named = {"batch_size": BATCH, "epochs": epochs, "callbacks": callbacks, "verbose": 0}
    history = model.fit(*data, validation_data=validation, **named).history
    model.optimizer.finish()  # once all workers are done: the same model on each
    rank = model.optimizer.client.rank
    for epoch, loss in enumerate(history["loss"]):
        print(f"rank {rank}: epoch {epoch + 1}: loss {loss:.5f}, validation {history['val_loss'][epoch]:.5f}")
    _, accuracy = model.evaluate(*distnet.keras.shard(pictures(seed=3)), verbose=0)
    print(f"rank {rank}: accuracy on new pictures: {accuracy:.1%}", flush=True)


if __name__ == "__main__":
    keras.utils.set_random_seed(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
