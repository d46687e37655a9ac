"""How a variation of a recipe does on training images that were held out: what a recipe may be chosen by.

    python bench/recipe_choice.py --data DIR --recipe nesterov --set learning_rate=0.1 --set contrast=0.6,1.4 --out FILE

AlexNet in one process, without a server. The last 5,000 training images are held out of the training and scored at
its end; test images are not looked at. With `--delay 2`, gradients are applied two updates late, as two workers of a
reply-first semantics have them. A line for each training is added to the file, and `--table` prints those that are
there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HOLDOUT = 5_000


def main() -> int:
    """Train one variation and keep what came of it, or print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines, one for each training")
    parser.add_argument("--table", action="store_true", help="only print what is there, as Markdown")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--recipe", default="nesterov")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a change to the recipe")
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--delay", type=int, default=0, help="in updates")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table_lines(json.loads(line) for line in options.out.read_text("utf-8").splitlines())))
        return 0
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512, where it is twice as fast
    result = tried(options, changes_of(options.set))
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result))
    return 0


def changes_of(given: Iterable[str]) -> dict[str, Any]:
    """Return changes such as `contrast=0.6,1.4` by field: numbers, pairs of numbers, `true` and `false`."""
    changes: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        parts = [json.loads(part) for part in value.split(",")]
        changes[name] = parts[0] if len(parts) == 1 else tuple(parts)
    return changes


def tried(options: argparse.Namespace, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Train, and return what was tried and what it reached."""
    from simulated_staleness import train

    from distnet.alexnet.recipes import RECIPES
    from distnet.data.cifar10 import load_data
    from distnet.tensorflow import prepare

    prepare(rank=0, threads=options.threads)
    losses = []

    def on_epoch(epoch: int, loss: float) -> None:
        losses.append(loss)
        print(f"epoch {epoch}: training loss {loss:.3f}", file=sys.stderr, flush=True)

    found = train(
        load_data(options.data, holdout=HOLDOUT),
        dataclasses.replace(RECIPES[options.recipe], **changes),
        epochs=options.epochs,
        delay=options.delay,
        seed=options.seed,
        precision=options.precision,
        on_epoch=on_epoch,
    )
    return {
        "recipe": options.recipe,
        "changes": dict(changes),
        "epochs": options.epochs,
        "delay": options.delay,
        "seed": options.seed,
        "precision": options.precision,
        "accuracy": round(found.accuracy, 5),
        "loss": round(found.loss, 5),
        "training_loss": round(losses[-1], 5) if losses else None,
    }


def table_lines(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the trainings as a table in Markdown: the shortest first, then by delay, and the best first."""
    lines = ["| recipe | epochs | delay | seed | held out | loss |", "|---|--:|--:|--:|--:|--:|"]
    for result in sorted(results, key=lambda r: (r["epochs"], r["delay"], -r["accuracy"])):
        changes = ", ".join(f"{name} {_shown(value)}" for name, value in result["changes"].items())
        lines.append(
            f"| {result['recipe']}{', ' if changes else ''}{changes} | {result['epochs']:g} | {result['delay']} "
            f"| {result['seed']} | {result['accuracy']:.2%} | {result['loss']:.3f} |"
        )
    return lines


def _shown(value: Any) -> str:
    return " to ".join(f"{part:g}" for part in value) if isinstance(value, (list, tuple)) else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
