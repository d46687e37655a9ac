"""What training feels of its servers, against workers that do not communicate.

    python bench/training_ratio.py --turns 12 --steps 8

Two worker processes of one thread each train AlexNet on generated images. Each turn, every semantics over every
transport gets the same number of steps of both workers, one setting after another in an order that is shuffled each
turn. Settings are compared by the median over the turns of their ratio to the same turn without communication: a
machine that drifts drifts for all. The answer is checked: every server must have applied every push.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ALONE = "alone"
TRANSPORTS = ("shm", "tcp")
WORKERS = 2


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="of each worker, in each turn of each setting")
    parser.add_argument("--overlap", action="store_true", help="exchange one gradient while the next is computed")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(**options.worker)
        return 0
    with contextlib.ExitStack() as stack:
        settings, servers = start_servers(stack)
        workers = [stack.enter_context(started_worker(rank, settings, options.overlap)) for rank in range(WORKERS)]
        seconds = measure(workers, settings, options.turns, options.steps)
        for workers_end in workers:
            tell(workers_end, "")
            workers_end.wait(60)
        pushes = (options.turns + 1) * options.steps
        for name, server in servers.items():
            expected = pushes if name.startswith("sync") else WORKERS * pushes
            if server.stats()["updates"] != expected:
                raise SystemExit(f"{name}: {server.stats()['updates']} updates instead of {expected}")
    figures = summarise(seconds, options.steps)
    report(figures)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file)
    return 0


def start_servers(stack: contextlib.ExitStack) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """Return, by setting, the address and transport to use, and the servers."""
    import distnet
    from distnet.alexnet.network import initial_parameters

    settings: dict[str, tuple[str, str]] = {}
    servers: dict[str, Any] = {}
    for semantics in distnet.SEMANTICS:
        for transport in TRANSPORTS:
            name = f"{semantics} {transport}"
            servers[name] = stack.enter_context(
                distnet.ParameterServer(
                    initial_parameters(1),
                    semantics=semantics,
                    optimizer=distnet.Momentum(0.001),
                    workers=WORKERS,
                    address="tcp://127.0.0.1:0",
                    processes=True,
                )
            )
            settings[name] = (servers[name].address, transport)
    return settings, servers


@contextlib.contextmanager
def started_worker(rank: int, settings: dict[str, tuple[str, str]], overlap: bool) -> Iterator[subprocess.Popen[str]]:
    """Start a worker process that computes on command; it is ready when this returns."""
    arguments = {"rank": rank, "settings": settings, "overlap": overlap}
    with subprocess.Popen(
        [sys.executable, __file__, "--worker", json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            answer(process)
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a worker a line."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> float:
    """Return the number that a worker says next."""
    assert process.stdout is not None
    return float(process.stdout.readline())


def measure(
    workers: list[subprocess.Popen[str]], settings: dict[str, tuple[str, str]], turns: int, steps: int
) -> dict[str, list[float]]:
    """Return the seconds of every turn, by setting; the first turn warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in (ALONE, *settings)}
    for turn in range(turns + 1):
        for name in random.sample(list(seconds), len(seconds)):
            for process in workers:
                tell(process, f"{name}:{steps}")
            slowest = max([answer(process) for process in workers])
            if turn > 0:
                seconds[name].append(slowest)
    return seconds


def summarise(seconds: dict[str, list[float]], steps: int) -> dict[str, dict[str, float]]:
    """Return each setting's rate, and its ratio with the interval that holds the middle 95 % of resampled medians."""
    generator = random.Random(1)
    figures = {}
    for name, times in seconds.items():
        ratios = [alone / mine for alone, mine in zip(seconds[ALONE], times, strict=True)]
        medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
        rate = WORKERS * steps * 128 / statistics.median(times)
        figures[name] = {
            "examples_per_s": rate,
            "ratio": statistics.median(ratios),
            "low": medians[50],
            "high": medians[1949],
        }
    return figures


def report(figures: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    print(f"{'setting':22} {'examples/s':>10} {'ratio':>7}  95 % interval")
    for name, row in figures.items():
        print(f"{name:22} {row['examples_per_s']:10.0f} {row['ratio']:7.3f}  {row['low']:.3f} to {row['high']:.3f}")


def work(rank: int, settings: dict[str, tuple[str, str]], overlap: bool) -> None:
    """Run as a worker process: steps on command, one model a setting."""
    import time

    import numpy as np
    import tensorflow as tf

    import distnet
    from distnet.alexnet.images import training_batches
    from distnet.alexnet.local_optimizer import LocalOptimizer
    from distnet.alexnet.network import initial_parameters
    from distnet.alexnet.network_tensorflow import gradients
    from distnet.tensorflow import TensorFlowWorker, prepare

    device = prepare(rank=rank, threads=1)
    generator = np.random.default_rng(rank)
    images = generator.integers(0, 256, (5000, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 10, 5000).astype(np.int32)
    batches = iter(training_batches(images, labels, rank=rank, workers=WORKERS, batch_size=128, seed=1, steps=10**6))

    def compiled(variables: list[Any]) -> Any:
        return lambda batch: gradients(variables, *batch, weight_decay=0.004)

    steps: dict[str, Any] = {}
    ends: list[Any] = []
    variables = [tf.Variable(array) for array in initial_parameters(1).values()]
    updater = LocalOptimizer(distnet.Momentum(0.001).to_spec(), variables, ema_decay=0.0)

    @tf.function  # type: ignore[untyped-decorator]
    def alone(images: Any, labels: Any, scalars: Any) -> Any:
        loss, found = gradients(variables, images, labels, weight_decay=0.004)
        updater.apply(found, scalars)
        return loss

    scalars = updater.scalars(0)
    steps[ALONE] = lambda batch: float(alone(*batch, scalars))
    for name, (address, transport) in settings.items():
        client = distnet.connect(address, rank=rank, transport=transport, timeout=120)
        assert client.transport == transport
        mine = [tf.Variable(array) for array in initial_parameters(1).values()]
        worker = TensorFlowWorker(mine, client, step=compiled(mine), device=device, overlap=overlap)
        steps[name] = worker.step
        ends += [worker.close, client.close]
        worker.compile((tf.TensorSpec([128, 24, 24, 3], tf.float32), tf.TensorSpec([128], tf.int32)))
    print(0.0, flush=True)
    for line in sys.stdin:
        name, _, count = line.strip().partition(":")
        if not name:
            break
        begin = time.perf_counter()
        for _ in range(int(count)):
            steps[name](next(batches))
        print(time.perf_counter() - begin, flush=True)
    for end in ends:
        end()


if __name__ == "__main__":
    sys.exit(main())
