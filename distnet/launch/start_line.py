"""The line that a job begins with: what it runs, and what happens to workers that are lost."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Literal

from distnet.checkpoint.every import DEFAULT_EVERY, Every, parse_every
from distnet.optimizers import SGD, Optimizer
from distnet.settings.calls import Call
from distnet.settings.grammar import as_text, call_of
from distnet.settings.job import DEFAULT_SEMANTICS, DEFAULT_WORKERS, JobSettings

__all__ = ["memory_line", "start_line", "wrapped"]

Launcher = Literal["run", "serve", "train"]


def start_line(settings: JobSettings, launcher: Launcher) -> str:
    """Return what is run, in one line: semantics, optimizer, schedule, servers, transport, lost workers.

    Args:
        settings: of the job; of a training with what its recipe brought.
        launcher: the command, which decides what happens to lost workers.
    """
    parts = [_semantics(settings), *_optimizer(settings), _servers(settings), _transport(settings)]
    if settings.ema_decay:
        parts.append(f"EMA {settings.ema_decay:g}")
    parts += _checkpoints(settings)
    return " · ".join([*parts, _lost_workers(settings, launcher)])


def wrapped(line: str) -> str:
    """Return a line for standard error: in a terminal broken at words to its width and indented, else as it is."""
    if not sys.stderr.isatty():
        return line
    columns = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _semantics(settings: JobSettings) -> str:
    named, chosen = settings.semantics or DEFAULT_SEMANTICS, settings.semantics_value()
    others = [
        f"{name}={value}"
        for name in ("joins", "replies", "guard", "reduction", "max_inflight")
        if (value := getattr(settings, name)) is not None
    ]
    name = f"{named} ({', '.join(others)})" if others else named
    return f"{name}: {'one gradient of every worker' if chosen.joins == 'all' else 'each gradient'} makes an update"


def _optimizer(settings: JobSettings) -> list[str]:
    parts = optimizer_parts(settings.optimizer_from(SGD(0.01)))
    if settings.leaves_the_optimizer_to_rank_0:
        parts[0] += ", unless rank 0 brings an optimizer"
    return parts + [f"{pattern}: {as_text(group)}" for pattern, group in settings.group_values().items()]


def optimizer_parts(optimizer: Optimizer) -> list[str]:
    """Return an optimizer with its settings and where its learning rate starts, and its schedule."""
    call = call_of(optimizer, complete=True)
    rate = call.settings["learning_rate"]
    if not isinstance(rate, Call):
        return [str(call), "learning rate constant"]
    start = {"learning_rate": rate.settings["learning_rate"]} if "learning_rate" in rate.settings else {}
    return [
        str(Call(call.name, {**call.without("learning_rate").settings, **start})),
        f"schedule {rate.without('learning_rate')}",
    ]


def _servers(settings: JobSettings) -> str:
    fewest = settings.semantics_value().minimum_servers
    servers, workers = settings.servers or fewest, settings.workers or DEFAULT_WORKERS
    return f"{_count(servers, 'server')}, {_count(workers, 'worker')}"


def _transport(settings: JobSettings) -> str:
    address = settings.address or "shm://"
    if address.startswith("shm://"):
        return "shared memory"
    formats = [
        f"{what} as {name}"
        for what, name in (("gradients", settings.push_format), ("parameters", settings.pull_format))
        if name not in (None, "float32")
    ]
    return "TCP, and shared memory within this host" + (f"; over TCP {', '.join(formats)}" if formats else "")


def _checkpoints(settings: JobSettings) -> list[str]:
    parts = [] if settings.restore is None else [f"goes on from {settings.restore}"]
    if settings.checkpoint is not None:
        every = parse_every(settings.checkpoint_every or DEFAULT_EVERY)
        parts.append(f"checkpoints in {settings.checkpoint}, every {_interval(every)} and at the end")
    return parts


def _lost_workers(settings: JobSettings, launcher: Launcher) -> str:
    semantics = settings.semantics_value()
    if semantics.joins == "all":
        rounds = {
            "shrink": "rounds go on without a lost worker",
            "wait": "rounds wait for a lost or silent worker",
            "abort": "all rounds end with a lost worker",
        }[semantics.on_loss]
        patience = _interval(Every(seconds=semantics.round_timeout))
        after = {
            "shrink": f", and wait {patience} for a silent one",
            "wait": "",
            "abort": f", or one silent for {patience}",
        }[semantics.on_loss]
        others = rounds + after
    else:
        others = "the others go on without a lost worker"
    if launcher == "serve":
        return others
    if launcher == "train":
        return "a worker that fails ends the training"
    waits = semantics.joins == "all" and semantics.on_loss == "wait"
    if waits:  # while it is started again; for nobody after that
        others = "the others go on without a lost worker"
    meanwhile = ", and the rounds wait for it" if waits else ""
    again = (
        f"a worker that fails is started again, up to {_count(settings.restarts, 'time')}{meanwhile}; then "
        if settings.restarts
        else ""
    )
    if settings.after_failure == "stop":
        without = ", and no round goes on without it" if waits and not again else ""
        return f"{again}{'it' if again else 'a worker that fails'} stops the job{without}"
    return f"{again}{others}"


def _interval(every: Every) -> str:
    if every.updates is not None:
        return _count(every.updates, "update")
    seconds = every.seconds or 0.0
    return f"{seconds / 60:g} min" if seconds >= 60 and seconds % 60 == 0 else f"{seconds:g} s"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def memory_line(bound: dict[str, int]) -> str:
    """Say in a line what bounds a server's memory, as its ``memory()`` returns it."""
    mib = {name.replace("_", " "): f"{size / 2**20:,.0f}" for name, size in bound.items()}
    total = mib.pop("total")
    return f"server memory: at most {total} MiB ({', '.join(f'{name} {size}' for name, size in mib.items())})"
