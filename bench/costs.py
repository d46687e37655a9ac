"""What an exchange costs beside time: processor time at both ends, an idle server's, and a server's memory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distnet._private.spawn import python_command
from distnet.benchmark.measure import RATE, SIZES, children_of_this_process, push_pull
from distnet.launch.children import Children, Line
from distnet.semantics import SEMANTICS

__all__ = ["alexnet_step", "exchange_processor_s", "idle_share", "server_memory"]

BATCH_SIZE = 128
DEADLINE_S = 300.0
SLACK_BYTES = 32 << 20
_STEPS = 8
_STEP_PATIENCE_S = 180.0


def processor_s(pids: Sequence[int]) -> float:
    """Return the processor time that processes used so far, in all their threads, to the nanosecond."""
    total_ns = 0
    for pid in pids:
        for schedule in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                total_ns += int(schedule.read_text().split()[0])
    return total_ns / 1e9


def exchange_processor_s(semantics: str, transport: str, *, calls: int = 100, pause_s: float = 0.01) -> float:
    """Return the processor time of one exchange of AlexNet's size, worker and server together.

    Exchanges come one by one with pauses between them, as a worker makes them that computes in between: whoever waits
    goes to sleep, and its spinning before that and its waking count.
    """
    with push_pull(SIZES["alexnet"], semantics, transport) as contender:
        pids = (os.getpid(), *contender.pids)
        contender.run(10)
        before_s = processor_s(pids)
        for _ in range(calls):
            time.sleep(pause_s)
            contender.run(1)
        used_s = processor_s(pids) - before_s
        contender.check(10 + calls)
    return used_s / calls


def idle_share(*, clients: int = 2, seconds: float = 5.0) -> float:
    """Return the share of a core that a server takes while connected clients ask nothing of it."""
    with _server("async-lockfree", "alexnet", workers=clients) as (server, pids), contextlib.ExitStack() as stack:
        import distnet

        for rank in range(clients):
            stack.enter_context(distnet.connect(server.address, rank=rank, timeout=DEADLINE_S)).pull()
        time.sleep(0.2)
        before_s, start_s = processor_s(pids), time.perf_counter()
        time.sleep(seconds)
        return (processor_s(pids) - before_s) / (time.perf_counter() - start_s)


def server_memory(semantics: str, size: str) -> tuple[int, int]:
    """Return the bytes that a server process holds after some exchanges, and those it may.

    Allowed: its buffers of parameters, what one session may have in flight, and 32 MiB. A page that a worker has mapped
    as well counts half.
    """
    import distnet

    policy = SEMANTICS[semantics]
    with _server(semantics, size, workers=1) as (server, pids):
        gradients = [np.ones(count, np.float32) for count in SIZES[size].tensors]
        with distnet.connect(server.address, rank=0, timeout=DEADLINE_S) as client:
            for _ in range(6):
                client.push_pull(gradients)
            held = sum(_resident_bytes(pid) for pid in pids)
    buffers = 1 if policy.guard == "lock-free" else 3
    return held, (buffers + policy.max_inflight) * SIZES[size].bytes + SLACK_BYTES


def alexnet_step() -> float | None:
    """Return the processor time of one training step of AlexNet on one thread; None without TensorFlow."""
    with Children() as children:
        children.start("AlexNet", python_command(__name__))
        give_up_s = time.monotonic() + _STEP_PATIENCE_S
        while time.monotonic() < give_up_s and children.running:
            for event in children.wait(0.5):
                if isinstance(event, Line) and event.stream == "stdout" and event.text.startswith("{"):
                    step_s: float = json.loads(event.text)["step_s"]
                    return step_s
    return None


@contextlib.contextmanager
def _server(semantics: str, size: str, *, workers: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
    import distnet

    parameters = [np.zeros(count, np.float32) for count in SIZES[size].tensors]
    before = children_of_this_process()
    with distnet.ParameterServer(
        parameters, semantics=semantics, optimizer=distnet.SGD(RATE), workers=workers, processes=True
    ) as server:
        yield server, tuple(sorted(children_of_this_process() - before))


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def train() -> None:
    """Run as a process that trains AlexNet a little and says what a step took."""
    import tensorflow as tf

    from distnet.alexnet.network import initial_parameters
    from distnet.alexnet.network_tensorflow import gradients
    from distnet.tensorflow import prepare

    prepare(rank=0, threads=1)
    variables = [tf.Variable(array) for array in initial_parameters(1).values()]
    generator = np.random.default_rng(1)
    images = tf.constant(generator.random((BATCH_SIZE, 24, 24, 3), np.float32))
    labels = tf.constant(generator.integers(0, 10, BATCH_SIZE).astype(np.int32))

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> Any:
        loss, found = gradients(variables, images, labels, weight_decay=0.004)
        for variable, gradient in zip(variables, found, strict=True):
            variable.assign_sub(0.001 * gradient)
        return loss

    losses = [float(step()) for _ in range(2)]
    before_s = time.process_time()
    losses += [float(step()) for _ in range(_STEPS)]
    step_s = (time.process_time() - before_s) / _STEPS
    assert losses[-1] < losses[0], losses  # it does train
    sys.stdout.write(json.dumps({"step_s": step_s}) + "\n")


if __name__ == "__main__":
    train()
