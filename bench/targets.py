"""What is to be reached, beside what a run measured: one row a target."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import collectives
import doors
from many_workers import MORE_COUNTS, SCALING

from distnet.benchmark.turns import Spread, Timing, difference, ratio
from distnet.semantics import SEMANTICS

__all__ = ["Row", "rows", "timings"]

TORCH_RPC = "torch RPC (TensorPipe)"
TENSORFLOW = "TensorFlow ParameterServerStrategy, pipelined"
OWN = ("async-apply", "async-lockfree")
SIZE_NAMES = {"small": "4 KiB", "alexnet": "AlexNet", "resnet50": "ResNet-50"}
LARGE = ("alexnet", "resnet50")

Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A target and what was measured of it.

    Attributes:
        what: the quantity.
        reach: the bound; None where this run cannot measure the quantity.
        measured: its value, in the bound's unit; None where it was not measured.
        at_most: whether the bound is an upper one.
        show: writes a value.
        why: what kept it from being measured.
    """

    what: str
    reach: float
    measured: Spread | None
    at_most: bool = True
    show: Callable[[float], str] = lambda value: f"{value:.2f} ×"
    why: str = "not measured in this run"

    @property
    def reach_text(self) -> str:
        """The bound in words."""
        return f"at {'most' if self.at_most else 'least'} {self.show(self.reach)}"

    @property
    def measured_text(self) -> str:
        """The median, and the middle half where there is one."""
        if self.measured is None:
            return "–"
        median, low, high = (self.show(value) for value in dataclasses.astuple(self.measured))
        return median if low == high else f"{median} ({low} to {high})"

    @property
    def verdict(self) -> str:
        """Reached, or short by how much."""
        if self.measured is None:
            return self.why
        value = self.measured.median
        if value <= self.reach if self.at_most else value >= self.reach:
            return "reached"
        off = value / self.reach - 1 if self.at_most else 1 - value / self.reach
        return f"short by {100 * off:.1f} %" if off < 1 else f"short: {value / self.reach:.1f} times the bound"


def timings(results: Results, part: str) -> dict[str, Timing]:
    """Return the timings of a group by contender; none where it was not measured."""
    found = results.get("parts", {}).get(part, {}).get("timings", {})
    return {
        name: Timing(latency_s=t["latency_s"], sustained_s=t["sustained_s"], turns_s=tuple(t["turns_s"]))
        for name, t in found.items()
    }


def rows(results: Results) -> list[Row]:
    """Return every target of this run."""
    return [
        *_shared_memory(results),
        *_rivals(results),
        *_small(results),
        *_stores(results),
        *_tcp(results),
        *_optimizers(results),
        *_training(results),
        *_costs(results),
        *_scaling(results),
        *_collectives(results),
        *_doors(results),
    ]


def _ratio(results: Results, part: str, name: str, other: str) -> Spread | None:
    found = timings(results, part)
    return ratio(found, name, other) if name in found and other in found else None


def _one(value: float | None) -> Spread | None:
    return None if value is None else Spread.of([value])


def _shared_memory(results: Results) -> Iterator[Row]:
    for suffix, words, bounds in (
        ("", "copied pull", {"alexnet": 2.0, "resnet50": 2.0}),
        (", no copy", "pull without a copy", {"alexnet": 1.2, "resnet50": 1.4}),
    ):
        for size, bound in bounds.items():
            for semantics in OWN:
                yield Row(
                    what=f"shared memory, {words}, {SIZE_NAMES[size]}, {semantics} / SGD in place",
                    reach=bound,
                    measured=_ratio(results, f"shm-{size}", f"{semantics} shm{suffix}", "SGD in place"),
                )


def _rivals(results: Results) -> Iterator[Row]:
    for size in LARGE:
        for name, bound, rival in (("torch RPC", 8.0, TORCH_RPC), ("TensorFlow, pipelined", 40.0, TENSORFLOW)):
            yield Row(
                what=f"{name} / async-apply over shared memory, {SIZE_NAMES[size]}",
                reach=bound,
                measured=_ratio(results, f"rivals-{size}", rival, "async-apply shm"),
                at_most=False,
                show=lambda value: f"{value:.1f} ×",
            )
    yield Row(
        what="ps-lite / async-apply over shared memory",
        reach=15.0,
        measured=None,
        at_most=False,
        show=lambda value: f"{value:.1f} ×",
        why="not measured: ps-lite is not on PyPI",
    )


def _small(results: Results) -> Iterator[Row]:
    for part, words, bound_us in (("shm-small", "one after another", 5.0), ("pauses-small", "after a pause", 15.0)):
        for semantics in OWN:
            timing = timings(results, part).get(f"{semantics} shm")
            yield Row(
                what=f"shared memory, 4 KiB, {semantics}, {words}",
                reach=bound_us,
                measured=_one(1e6 * timing.latency_s) if timing else None,
                show=_microseconds,
            )


def _stores(results: Results) -> Iterator[Row]:
    found = results.get("parts", {}).get("stores", {})
    rate = {name: row["per_s"] for name, row in found.items() if isinstance(row, Mapping)}
    one, two = rate.get("lock-free 1"), rate.get("lock-free 2")
    many = [rate[f"lock-free {threads}"] for threads in (4, 8, 16) if f"lock-free {threads}" in rate]
    kernel = found["lock-free 1"]["ratio"] if one else None
    for what, bound, value in (
        ("lock-free store, one writer / the plain kernel", 0.9, kernel),
        ("lock-free store, two writers / one, in cache", 1.5, two / one if one and two else None),
        ("lock-free store, 4 to 16 writers / two", 0.9, min(many) / two if many and two else None),
    ):
        yield Row(what=what, reach=bound, measured=_one(value), at_most=False)


def _tcp(results: Results) -> Iterator[Row]:
    for words, semantics, bounds in (
        ("TCP, apply then reply", "async-apply tcp", {"alexnet": 1.10, "resnet50": 1.10}),
        ("TCP, reply first", "async-lockfree tcp", {"alexnet": 0.97, "resnet50": 0.85}),
        ("TCP, bfloat16 both ways", "async-apply tcp, bfloat16", {"alexnet": 0.6, "resnet50": 0.6}),
        ("TCP, apply then reply", "async-apply tcp", {"small": 1.2}),
    ):
        for size, bound in bounds.items():
            yield Row(
                what=f"{words}, {SIZE_NAMES[size]}, {semantics.removesuffix(', bfloat16')} / bare exchange",
                reach=bound,
                measured=_ratio(results, f"tcp-{size}", semantics, "bare TCP exchange"),
            )
    yield Row(
        what="TCP, reply first, over a bandwidth-limited link / bare exchange",
        reach=0.6,
        measured=None,
        why="not measured: needs root: see *Over a limited link*",
    )


def _optimizers(results: Results) -> Iterator[Row]:
    for size in LARGE:
        found = timings(results, f"optimizers-{size}")
        for name in ("momentum", "Adam"):
            value = None
            if found:
                more = difference(found, f"async-apply shm, {name}", "async-apply shm, SGD")
                kernels = difference(found, f"{name} in place", "SGD in place")
                value = more.median / kernels.median
            yield Row(
                what=f"{name} beyond SGD, {SIZE_NAMES[size]}: push_pull's difference / the kernels'",
                reach=1.3,
                measured=_one(value),
            )


def _training(results: Results) -> Iterator[Row]:
    found = results.get("parts", {}).get("training", {})
    for semantics in SEMANTICS:
        for transport in ("shm", "tcp"):
            row = found.get(f"{semantics} {transport}")
            measured = Spread(median=row["ratio"], low=row["low"], high=row["high"]) if row else None
            yield Row(
                what=f"two training workers, {semantics} {transport} / two that do not communicate (95 % interval)",
                reach=0.95 if semantics == "sync" else 0.98,
                measured=measured,
                at_most=False,
                show=lambda value: f"{value:.3f} ×",
            )


def _costs(results: Results) -> Iterator[Row]:
    python = timings(results, "python-small")
    ten, one = python.get("async-lockfree shm, ten tensors"), python.get("async-lockfree shm, one tensor")
    layer = python.get("Python layer")
    share_s = layer.latency_s + max(0.0, ten.latency_s - one.latency_s) if layer and ten and one else None
    yield Row(
        what="Python's share of a push_pull of ten tensors: its layer, and what ten arrays take beyond one",
        reach=30.0,
        measured=_one(None if share_s is None else 1e6 * share_s),
        show=_microseconds,
    )
    found = results.get("parts", {}).get("costs", {})
    exchanges, step_s = found.get("exchange_processor_s", {}), found.get("alexnet_step_s")
    for transport, bound in (("shm", 0.005), ("tcp", 0.02)):
        for semantics in OWN:
            name = f"{semantics} {transport}"
            yield Row(
                what=f"processor time of an exchange, both ends, {name} / that of an AlexNet step",
                reach=bound,
                measured=_one(exchanges[name] / step_s if name in exchanges and step_s else None),
                show=_per_cent,
            )
    yield Row(
        what="an idle server's share of a core", reach=0.001, measured=_one(found.get("idle_share")), show=_per_cent
    )
    for name, (held, allowed) in found.get("server_memory_bytes", {}).items():
        semantics, _, size = name.partition(" ")
        yield Row(
            what=f"a server's memory, {semantics}, {SIZE_NAMES[size]} (buffers, pushes in flight, 32 MiB)",
            reach=allowed / 1e6,
            measured=_one(held / 1e6),
            show=lambda value: f"{value:.0f} MB",
        )


def _scaling(results: Results) -> Iterator[Row]:
    found = results.get("parts", {}).get("workers", {})
    for semantics, transport in SCALING:
        counts = (2, 4, *MORE_COUNTS)
        shown = [found.get(f"{semantics} {transport} {count}") for count in counts]
        complete = [row for row in shown if row]
        rates = [statistics.median(row["per_s"]) for row in complete]
        shares = [statistics.median(row["slowest_share"]) for row in complete]
        yield Row(
            what=f"2 to 16 workers, {semantics} {transport}: the lowest total throughput / the best",
            reach=0.8,
            measured=_one(min(rates) / max(rates) if rates else None),
            at_most=False,
        )
        yield Row(
            what=f"2 to 16 workers, {semantics} {transport}: the slowest worker / the mean",
            reach=0.5,
            measured=_one(min(shares) if shares else None),
            at_most=False,
        )


def _collectives(results: Results) -> Iterator[Row]:
    for size, way, words, bound_ms in (
        ("ten", "shm", "shared memory", 0.1),
        ("alexnet", "shm", "shared memory", 1.0),
        ("ten", "torch", "through PyTorch", 0.2),
    ):
        found = timings(results, f"collectives-{collectives.part_name(2, size)}").get(f"allreduce {way}")
        yield Row(
            what=f"all-reduce of {collectives.FLOATS[size]:,} floats, 2 ranks, {words}",
            reach=bound_ms,
            measured=_one(1e3 * found.sustained_s if found else None),
            show=lambda value: f"{value:.3f} ms",
        )
    for size in LARGE:
        yield Row(
            what=f"all-reduce of {collectives.FLOATS[size]:,} floats, 2 ranks, TCP / bare exchange",
            reach=1.2,
            measured=_ratio(
                results, f"collectives-{collectives.part_name(2, size)}", "allreduce tcp", collectives.BARE
            ),
        )
    for ranks, size in collectives.PARTS:
        part = f"collectives-{collectives.part_name(ranks, size)}"
        for operation, way in itertools.product(collectives.OPERATIONS, collectives.OURS):
            yield Row(
                what=f"{operation} of {collectives.FLOATS[size]:,} floats, {ranks} ranks, {way} / gloo",
                reach=1.0,
                measured=_ratio(results, part, f"{operation} {way}", f"{operation} gloo"),
            )


def _doors(results: Results) -> Iterator[Row]:
    for door in doors.DOORS:
        found = doors.cost(timings(results, f"doors-{door.name}"))
        yield Row(
            what=f"door: {door.words}, less the bare exchange",
            reach=1e3 * door.reach_s,
            measured=None if found is None else Spread(**{k: 1e3 * v for k, v in dataclasses.asdict(found).items()}),
            show=lambda value: f"{value:.3f} ms",
        )


def _microseconds(value: float) -> str:
    return f"{value:.1f} µs"


def _per_cent(value: float) -> str:
    return f"{100 * value:.2f} %"
