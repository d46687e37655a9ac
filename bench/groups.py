"""What is measured beside what: groups of contenders that run in turns, with what they are to be divided by.

``python bench/run.py`` runs them all and writes the report; ``pytest bench -k NAME`` runs some by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from rivals import RIVALS

import distnet
from distnet.benchmark import measure
from distnet.benchmark.measure import RATE, SIZES, Contender, Size
from distnet.optimizers import SGD, Adam, Momentum, Optimizer
from distnet.semantics import SEMANTICS

__all__ = ["GROUPS", "OPTIMIZERS", "Entry", "Group"]

MAIN_SIZES = ("small", "alexnet", "resnet50")
EDGE_SIZES = ("medium", "bert")  # measured with two semantics only
EDGE_SEMANTICS = ("async-apply", "async-lockfree")
TRANSPORTS = ("shm", "tcp")
OPTIMIZERS: dict[str, Optimizer] = {"SGD": SGD(RATE), "momentum": Momentum(0.001), "Adam": Adam(0.001)}

WIRES = tuple(getattr(distnet, "FORMATS", ()))
# Fast paths of the engine: the field of distnet.Tuning, its value that switches it off, and where it should matter.
FAST_PATHS: tuple[tuple[str, Any, str, str, tuple[str, ...]], ...] = (
    ("spin", 0.0, "async-apply", "shm", ("small",)),
    ("announce_early", False, "async-apply", "shm", ("small", "alexnet")),
    ("apply_arriving", False, "async-apply", "shm", ("alexnet", "resnet50")),
    ("read_drafts", False, "async-apply", "shm", ("alexnet", "resnet50")),
    ("deliver", False, "async-lockfree", "shm", ("alexnet", "resnet50")),
    ("past_cache", False, "async-lockfree", "shm", ("resnet50",)),
    ("duplex", False, "async-lockfree", "tcp", ("alexnet", "resnet50")),
    ("congestion_control", "", "async-apply", "tcp", ("alexnet", "resnet50")),
)
PAUSE_S = 0.001  # long enough for whoever waits to stop spinning and go to sleep
TEN_TENSORS = Size("ten tensors, 4 KiB in all", (102,) * 9 + (106,))

Make = Callable[[], contextlib.AbstractContextManager[Contender]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender that is not started yet.

    Attributes:
        name: as the contender's own, or what it is called before it has one.
        make: starts it.
        missing: the package it needs and does not have.
    """

    name: str
    make: Make
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Contenders that run in the same turns.

    Attributes:
        name: ``what-size``, for ``pytest -k`` and the results.
        size: a name of ``SIZES``.
        budget_s: about how long to measure, beside starting.
        entries: its contenders.
        rounds: of each contender where it runs by itself, under pytest.
    """

    name: str
    size: str
    budget_s: float
    entries: tuple[Entry, ...]
    rounds: int


def _limits(size: Size, *names: str) -> list[Entry]:
    makers: dict[str, Callable[[Size], contextlib.AbstractContextManager[Contender]]] = {
        "memcpy": measure.memory_copy,
        "SGD in place": measure.sgd_in_place,
        "SGD in place, two cores": measure.sgd_on_two_cores,
        "bare TCP exchange": measure.loopback,
        "bare Unix exchange": measure.unix_socket,
        "Python layer": measure.python_layer,
    }
    return [Entry(name, functools.partial(makers[name], size)) for name in names]


def _own(size: Size, semantics: str, transport: str, suffix: str = "", **options: Any) -> Entry:
    """Return an exchange of ours; `options` are those of `measure.push_pull`."""
    name = f"{semantics} {transport}{', ' if suffix else ''}{suffix}"
    make = functools.partial(measure.push_pull, size, semantics, transport, name=name, **options)
    return Entry(name, make)


def _semantics_over_shm(size: Size) -> list[Entry]:
    return [
        *_limits(size, "memcpy", "SGD in place", "SGD in place, two cores"),
        *(_own(size, semantics, "shm") for semantics in SEMANTICS),
        *(_own(size, semantics, "shm", "no copy", alias=True) for semantics in EDGE_SEMANTICS),
    ]


def _semantics_over_tcp(size: Size) -> list[Entry]:
    return [
        *_limits(size, "bare TCP exchange", "bare Unix exchange"),
        *(_own(size, semantics, "tcp") for semantics in SEMANTICS),
        *(_own(size, "async-apply", "tcp", wire, wire=wire) for wire in ("bfloat16",) if wire in WIRES),
    ]


def _edges(size: Size) -> list[Entry]:
    return [
        *_limits(size, "SGD in place", "bare TCP exchange"),
        *(_own(size, semantics, transport) for semantics in EDGE_SEMANTICS for transport in TRANSPORTS),
    ]


def _rivals(size: Size) -> list[Entry]:
    return [
        *_limits(size, "SGD in place", "bare TCP exchange", "bare Unix exchange"),
        _own(size, "async-apply", "shm"),
        _own(size, "async-lockfree", "shm"),
        _own(size, "async-apply", "tcp"),
        *(
            Entry(rival.name, functools.partial(rival.contender, size), "" if rival.installed else rival.package)
            for rival in RIVALS
        ),
    ]


def _halves(size: Size) -> list[Entry]:
    return [
        *_limits(size, "memcpy", "SGD in place", "bare TCP exchange"),
        *(
            _own(size, "async-lockfree", transport, call, call=call)
            for transport in TRANSPORTS
            for call in ("push", "pull", "push_pull")
        ),
    ]


def _servers(size: Size) -> list[Entry]:
    return [
        *_limits(size, "SGD in place", "bare TCP exchange"),
        *(
            _own(size, semantics, transport, f"{servers} server{'s' if servers > 1 else ''}", servers=servers)
            for semantics in EDGE_SEMANTICS
            for transport in TRANSPORTS
            for servers in (1, 2)
        ),
    ]


def _optimizers(size: Size) -> list[Entry]:
    in_place = [
        Entry(
            f"{name} in place",
            functools.partial(measure.optimizer_in_place, size, optimizer, name=f"{name} in place"),
        )
        for name, optimizer in OPTIMIZERS.items()
    ]
    return [
        *in_place,
        *(_own(size, "async-apply", "shm", name, optimizer=optimizer) for name, optimizer in OPTIMIZERS.items()),
    ]


def _formats(size: Size) -> list[Entry]:
    return [
        *_limits(size, "bare TCP exchange"),
        _own(size, "async-apply", "tcp"),
        *(
            _own(size, "async-apply", "tcp", wire, wire=wire)
            for wire in ("bfloat16", "float16", "int8")
            if wire in WIRES
        ),
    ]


def _paths(size: Size) -> list[Entry]:
    tuning = getattr(distnet, "Tuning", None)
    known = {field.name for field in dataclasses.fields(tuning)} if tuning else set()
    chosen = [path for path in FAST_PATHS if path[0] in known and size.name in _names(path[4])]
    with_all = dict.fromkeys((semantics, transport) for _, _, semantics, transport, _ in chosen)
    return [
        *(_own(size, semantics, transport) for semantics, transport in with_all),
        *(
            _own(
                size,
                semantics,
                transport,
                f"without {field}",
                server_options={"tuning": tuning(**{field: off})} if tuning else None,
                connect_options={"tuning": tuning(**{field: off})} if tuning else None,
            )
            for field, off, semantics, transport, _ in chosen
        ),
    ]


def _names(sizes: tuple[str, ...]) -> list[str]:
    return [SIZES[size].name for size in sizes]


@contextlib.contextmanager
def after_pauses(make: Make) -> Iterator[Contender]:
    """Yield a contender whose calls each come after a pause, which is not measured."""
    with make() as contender:

        def run(calls: int) -> list[float]:
            seconds: list[float] = []
            for _ in range(calls):
                time.sleep(PAUSE_S)
                seconds += contender.run(1)
            return seconds

        yield dataclasses.replace(contender, run=run)


def _pauses(size: Size) -> list[Entry]:
    entries = [
        *_limits(size, "bare TCP exchange", "bare Unix exchange"),
        *(_own(size, semantics, "shm") for semantics in EDGE_SEMANTICS),
        _own(size, "async-apply", "tcp"),
    ]
    return [Entry(entry.name, functools.partial(after_pauses, entry.make)) for entry in entries]


def _python(size: Size) -> list[Entry]:
    return [
        *_limits(TEN_TENSORS, "Python layer"),
        _own(TEN_TENSORS, "async-lockfree", "shm", "ten tensors"),
        _own(size, "async-lockfree", "shm", "one tensor"),
    ]


def _group(what: str, size: str, budget_s: float, make: Callable[[Size], list[Entry]]) -> Group:
    rounds = {"small": 400, "medium": 200, "alexnet": 60, "resnet50": 6, "bert": 4}[size]
    return Group(f"{what}-{size}", size, budget_s, tuple(make(SIZES[size])), rounds)


_ALL: tuple[Group, ...] = (
    *(
        _group("shm", size, budget_s, _semantics_over_shm)
        for size, budget_s in zip(MAIN_SIZES, (8, 15, 30), strict=True)
    ),
    *(
        _group("tcp", size, budget_s, _semantics_over_tcp)
        for size, budget_s in zip(MAIN_SIZES, (8, 20, 40), strict=True)
    ),
    *(_group("rivals", size, budget_s, _rivals) for size, budget_s in zip(MAIN_SIZES, (10, 25, 50), strict=True)),
    *(_group("edge", size, budget_s, _edges) for size, budget_s in zip(EDGE_SIZES, (6, 30), strict=True)),
    _group("pauses", "small", 8, _pauses),
    _group("python", "small", 5, _python),
    _group("halves", "alexnet", 12, _halves),
    _group("servers", "alexnet", 12, _servers),
    _group("optimizers", "alexnet", 10, _optimizers),
    _group("optimizers", "resnet50", 20, _optimizers),
    _group("formats", "alexnet", 8, _formats),
    *(_group("paths", size, budget_s, _paths) for size, budget_s in zip(MAIN_SIZES, (5, 12, 25), strict=True)),
)
GROUPS = tuple(group for group in _ALL if group.entries)
