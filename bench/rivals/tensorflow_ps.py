"""TensorFlow's ParameterServerStrategy: variables on a server, steps that a coordinator schedules on a worker.

Alone, every step is waited for; pipelined, several are scheduled before they are waited for. Best settings found: one
variable a model; one thread of arithmetic in each process; TCP without pacing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from distnet.benchmark.measure import RATE, Size
from distnet.benchmark.turns import Contender, timed
from rivals.pair import free_ports, pair, prefer_reno, serve

_ROLES = ("ps", "worker", "coordinator")


@contextlib.contextmanager
def contender(size: Size) -> Iterator[Contender]:
    """Have the worker push a gradient and read the parameters, one step at a time."""
    with _cluster("TensorFlow ParameterServerStrategy, alone", size, pipelined=False) as rival:
        yield rival


@contextlib.contextmanager
def pipelined(size: Size) -> Iterator[Contender]:
    """Have it do several steps, scheduled at once."""
    with _cluster("TensorFlow ParameterServerStrategy, pipelined", size, pipelined=True) as rival:
        yield rival


@contextlib.contextmanager
def _cluster(name: str, size: Size, *, pipelined: bool) -> Iterator[Contender]:
    with pair(name, __name__, size, roles=_ROLES, ports=free_ports(3), pipelined=pipelined) as rival:
        yield rival


def main(role: str, tensors: list[int], folder: str, ports: list[int], pipelined: bool) -> None:
    """Run one of the three processes; the coordinator is the one that measures."""
    addresses = {name: [f"127.0.0.1:{port}"] for name, port in zip(("ps", "worker", "chief"), ports, strict=True)}
    task = {"type": "chief" if role == "coordinator" else role, "index": 0}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": addresses, "task": task})
    os.environ["GRPC_FAIL_FAST"] = "use_caller"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    prefer_reno()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if role != "coordinator":
        tf.distribute.Server(resolver.cluster_spec(), job_name=role, task_index=0, protocol="grpc", start=True).join()
        threading.Event().wait()
    _coordinate(tf, resolver, sum(tensors), pipelined)


def _coordinate(tf: Any, resolver: Any, floats: int, pipelined: bool) -> None:
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        parameters = tf.Variable(tf.zeros([floats]))
    # The gradient lies in the worker's memory, as one that was computed there would.
    with tf.device("/job:worker/replica:0/task:0/cpu:0"):
        step_of_ones = tf.Variable(tf.fill([floats], RATE))

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> Any:
        parameters.assign_sub(step_of_ones.read_value())
        return tf.identity(parameters.read_value())  # fresh parameters in the worker's own memory

    def schedule(count: int) -> None:
        for _ in range(count):
            coordinator.schedule(step)
        coordinator.join()

    def run_pipelined(calls: int) -> list[float]:
        start_s = time.perf_counter()
        schedule(calls)
        return [(time.perf_counter() - start_s) / calls] * calls

    def answer() -> tuple[float, float]:
        fresh = coordinator.schedule(tf.function(lambda: tf.identity(parameters.read_value())))
        values = fresh.fetch()
        return float(values.min()), float(values.max())

    serve(run_pipelined if pipelined else timed(lambda: schedule(1)), answer, checks="steps")
    os._exit(0)  # the coordinator's threads would wait for servers that end as well


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
