"""What staleness alone costs: AlexNet in one process, without a server, each gradient applied some updates late.

    python bench/simulated_staleness.py --data DIR --epochs 3 --delays 0 1 2

Two workers of `async-apply` have a staleness of about 1, two of a reply-first semantics of about 2. Where training with
DistNet loses as much accuracy as this does, the semantics is the cause, not the engine.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distnet.alexnet.loops import Evaluation
    from distnet.alexnet.recipes import Recipe
    from distnet.data.cifar10 import TrainingData


def main() -> int:
    """Train once for each delay, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1, 2], help="in updates")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()

    from distnet.alexnet.recipes import RECIPES
    from distnet.data.cifar10 import load_data
    from distnet.tensorflow import prepare

    prepare(rank=0, threads=options.threads)
    data, recipe = load_data(options.data), RECIPES[options.recipe]
    for delay in options.delays:
        found = train(data, recipe, epochs=options.epochs, delay=delay, seed=options.seed, precision=options.precision)
        print(f"delay {delay}: accuracy {found.accuracy:.2%} after {options.epochs:g} epochs", flush=True)
    return 0


def train(
    data: TrainingData,
    recipe: Recipe,
    *,
    epochs: float,
    delay: int,
    seed: int,
    precision: Any,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Evaluation:
    """Train with gradients applied `delay` updates late; returns how the moving average does on the test images.

    After each epoch, `on_epoch` is told its number, from 1, and the mean loss of its minibatches.
    """
    import tensorflow as tf

    from distnet.alexnet.images import training_batches
    from distnet.alexnet.local_optimizer import LocalOptimizer
    from distnet.alexnet.loops import evaluate
    from distnet.alexnet.network import TENSORS, initial_parameters
    from distnet.alexnet.network_tensorflow import gradients

    size = recipe.batch_size
    steps = int(epochs * len(data.train_images)) // size
    variables = [tf.Variable(array) for array in initial_parameters(seed).values()]
    rule = recipe.optimizer(examples=steps * size, effective_batch=size)
    updater = LocalOptimizer(rule.to_spec(), variables, ema_decay=recipe.ema_decay)

    @tf.function  # type: ignore[untyped-decorator]
    def computed(images: Any, labels: Any) -> Any:
        return gradients(variables, images, labels, weight_decay=recipe.weight_decay, precision=precision)

    @tf.function  # type: ignore[untyped-decorator]
    def apply(found: Any, scalars: Any) -> None:
        updater.apply(found, scalars)

    waiting: collections.deque[Any] = collections.deque()
    losses: list[Any] = []
    batches = training_batches(
        data.train_images,
        data.train_labels,
        rank=0,
        workers=1,
        batch_size=size,
        seed=seed,
        steps=steps,
        contrast=recipe.contrast,
    )
    for number, batch in enumerate(batches):
        loss, found = computed(*batch)
        losses.append(loss)
        waiting.append(found)
        if len(waiting) > delay:
            apply(waiting.popleft(), updater.scalars(number - delay))
        examples = (number + 1) * size
        if on_epoch is not None and (examples % len(data.train_images) < size or number + 1 == steps):
            on_epoch(round(examples / len(data.train_images)), float(tf.reduce_mean(tf.stack(losses))))
            losses.clear()
    arrays = dict(zip(TENSORS, (ema.numpy() for ema in updater.ema), strict=True))
    return evaluate(arrays, data)


if __name__ == "__main__":
    sys.exit(main())
