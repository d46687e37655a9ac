"""Exchanges over a link slower than memory: two network namespaces and a cable of so many bits a second.

    sudo python bench/limited_link.py --size alexnet --rate 1gbit

Needs root, `ip` and `tc`. Every semantics' exchange stands beside a bare one of the same bytes, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

import distnet
from distnet.benchmark.echo import receive
from distnet.benchmark.sizes import SIZES

SERVER, WORKER = "10.211.0.1", "10.211.0.2"
ECHO_PORT, FIRST_PORT = 7501, 7600
# What is measured: semantics, push format, pull format, both directions at once.
WAYS = (
    ("async-lockfree", "float32", "float32", True),
    ("async-lockfree", "float32", "float32", False),
    ("async-apply", "float32", "float32", True),
    ("async-lockfree", "bfloat16", "bfloat16", True),
    ("async-lockfree", "int8", "bfloat16", True),
)


def main() -> int:
    """Play the part that is asked for: all of it, the servers, or the worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="alexnet")
    parser.add_argument("--rate", default="1gbit", help="as `tc` writes it")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--part", choices=("all", "servers", "worker"), default="all", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "servers":
        serve(SIZES[options.size].tensors)
    elif options.part == "worker":
        work(SIZES[options.size].tensors, options.turns)
    else:
        run_between_namespaces(options.size, options.rate, options.turns)
    return 0


def run_between_namespaces(size: str, rate: str, turns: int) -> None:
    """Set up both ends, run the parts in them, and take everything down again."""

    def part(name: str, where: str) -> list[str]:
        own = [sys.executable, __file__, "--size", size, "--turns", str(turns), "--part", name]
        return ["ip", "netns", "exec", where, *own]

    with cable(rate) as (here, there):
        servers = subprocess.Popen(part("servers", here), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert servers.stdout is not None
            servers.stdout.readline()  # they listen
            subprocess.run(part("worker", there), check=True)
        finally:
            servers.communicate("")  # the end of their input ends them


@contextlib.contextmanager
def cable(rate: str) -> Iterator[tuple[str, str]]:
    """Yield the names of two network namespaces that are joined at that rate."""
    ends = (("distnet-bench-a", "bench-a", SERVER), ("distnet-bench-b", "bench-b", WORKER))
    with contextlib.ExitStack() as stack:
        for namespace, _, _ in ends:
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "del", namespace)
        ip("link", "add", ends[0][1], "type", "veth", "peer", "name", ends[1][1])
        for namespace, device, address in ends:
            ip("link", "set", device, "netns", namespace)
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
            limit = (
                "tc",
                "qdisc",
                "add",
                "dev",
                device,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "256kb",
                "latency",
                "50ms",
            )
            ip("netns", "exec", namespace, *limit)
        yield ends[0][0], ends[1][0]


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True)


def serve(tensors: tuple[int, ...]) -> None:
    """Be the servers, one for each way, and the other end of the bare exchange, until the input ends."""
    import socket
    import threading

    def echo(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        received = memoryview(bytearray(4 * sum(tensors)))
        while receive(connection, received):
            connection.sendall(received)

    listener = socket.create_server((SERVER, ECHO_PORT))
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    with contextlib.ExitStack() as stack:
        for place, (semantics, push_format, pull_format, duplex) in enumerate(WAYS):
            server = distnet.ParameterServer(
                [np.zeros(count, np.float32) for count in tensors],
                semantics=semantics,
                optimizer=distnet.SGD(0.5),
                address=f"tcp://{SERVER}:{FIRST_PORT + place}",
                push_format=push_format,
                pull_format=pull_format,
                tuning=distnet.Tuning(duplex=duplex),
            )
            stack.enter_context(server)
        sys.stdout.write("up\n")
        sys.stdout.flush()
        sys.stdin.read()


def work(tensors: tuple[int, ...], turns: int) -> None:
    """Be the worker of every server, in turns, and print what each exchange took."""
    import socket

    gradients = [np.ones(count, np.float32) for count in tensors]
    bare = socket.create_connection((SERVER, ECHO_PORT))
    payload = memoryview(bytearray(4 * sum(tensors)))

    def exchange() -> None:
        bare.sendall(payload)
        receive(bare, payload)

    calls: dict[str, Callable[[], object]] = {"bare exchange": exchange}
    clients = []
    for place, (semantics, push_format, pull_format, duplex) in enumerate(WAYS):
        client = distnet.connect(f"tcp://{SERVER}:{FIRST_PORT + place}", rank=0, transport="tcp")
        name = f"{semantics}, {push_format} / {pull_format}" + ("" if duplex else ", one direction at a time")
        calls[name] = lambda client=client: client.push_pull(gradients)  # type: ignore[misc]
        clients.append(client)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn > 0:  # the first one is for the caches and the windows
                seconds[name].append(time.perf_counter() - begin)
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds["bare exchange"], strict=True))
        sys.stdout.write(f"{name:60s} {statistics.median(own) * 1e3:9.2f} ms  {ratio:.3f} x bare\n")
    for client in clients:
        pushes = turns + 1
        client.close()
        if client.accepted != pushes:
            raise SystemExit(f"{client.accepted} of {pushes} pushes were accepted")
    bare.close()


if __name__ == "__main__":
    sys.exit(main())
