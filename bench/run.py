"""Measure everything and write the report: what ``make bench`` does.

    python bench/run.py                          # under 15 minutes on two quiet cores
    python bench/run.py --only tcp-alexnet,costs # some parts; the others keep the figures of the last run
    python bench/run.py --share 0.1              # a tenth of the time, to see that all works

Figures go to ``docs/results/bench/results.json``, tables and plots into ``docs/results/benchmarks.md``;
``python bench/report.py`` writes the latter again without measuring.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import collectives
import costs
import doors
import many_workers
import report
from groups import GROUPS, Group
from rivals.pair import RivalFailed

from distnet.alexnet.job.summary import machine, versions
from distnet.benchmark.measure import SIZES
from distnet.benchmark.turns import Contender, Timing, time_in_turns

ROOT = Path(__file__).parents[1]
BENCH_STORES = ROOT / "build" / "stores" / "bench_stores"
RIVAL_PACKAGES = ("torch", "ray", "grpcio")
TRAINING_PATIENCE_S = 900.0
_BYTES_A_CONTENDER = 7  # times the model's own: both ends' parameters, gradients and what is in flight
_DIGITS = 4


def main() -> int:
    """Measure, keep the figures, write the report, print its first table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART,PART", help=f"of {', '.join(parts(1.0))}")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual time")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--page", type=Path, default=report.PAGE)
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(parts(1.0))
    if unknown := set(chosen) - set(parts(1.0)):
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    results: dict[str, Any] = report.read(options.results) if options.only and options.results.exists() else {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever was started is ended on the way out
    start_s, failures = time.monotonic(), []
    for name, measure in parts(options.share).items():
        if name not in chosen:
            continue
        say(f"{time.monotonic() - start_s:6.0f} s  {name}")
        try:
            results.setdefault("parts", {})[name] = measure()
        except Exception as error:  # the other parts are worth having
            failures.append(name)
            results.setdefault("parts", {})[name] = {"failed": f"{type(error).__name__}: {error}"}
            say(f"          {name} failed: {type(error).__name__}: {error}")
    results["about"] = about(seconds=time.monotonic() - start_s, share=options.share, only=options.only)
    report.write(results, options.results, options.page)
    print(report.targets_in_words(results))
    return 1 if failures else 0


def parts(share: float) -> dict[str, Callable[[], Any]]:
    """Return what can be measured, by name, in the order of the run."""

    def group_part(group: Group) -> Callable[[], Any]:
        return lambda: measure_group(group, share)

    def collective_part(ranks: int, size: str) -> Callable[[], Any]:
        return lambda: {"timings": as_figures(collectives.measure(ranks, size, share=share))}

    def door_part(door: doors.Door) -> Callable[[], Any]:
        return lambda: measure_door(door, share)

    return {
        **{group.name: group_part(group) for group in GROUPS},
        **{f"doors-{door.name}": door_part(door) for door in doors.DOORS},
        **{f"collectives-{collectives.part_name(*part)}": collective_part(*part) for part in collectives.PARTS},
        "workers": lambda: many_workers.measure(turns=max(2, round(6 * share))),
        "costs": lambda: measure_costs(share),
        "stores": measure_stores,
        "training": lambda: measure_training(share),
    }


def measure_group(group: Group, share: float) -> dict[str, Any]:
    """Return the timings of a group, and why contenders are missing; a rival that dies is left out."""
    needed = _BYTES_A_CONTENDER * SIZES[group.size].bytes * len(group.entries)
    if needed > _available_bytes():
        raise MemoryError(f"{group.name} needs about {needed / 1e9:.0f} GB of memory")
    missing = {entry.name: f"{entry.missing} is not installed" for entry in group.entries if entry.missing}
    while True:
        try:
            timings = _time_group(group, missing, share)
            break
        except RivalFailed as failure:
            culprit = failure.entry
            if culprit is None or culprit in missing:
                raise
            missing[culprit] = str(failure).splitlines()[0]
            say(f"          without {culprit}: {failure}")
    return {"size": group.size, "missing": missing, "timings": timings}


def _time_group(group: Group, missing: dict[str, str], share: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        contenders: list[Contender] = []
        names: dict[str, str] = {}
        for entry in group.entries:
            if entry.name in missing:
                continue
            try:
                contenders.append(stack.enter_context(entry.make()))
            except RivalFailed as failure:
                failure.entry = entry.name
                raise
            names[contenders[-1].name] = entry.name
        try:
            timings = time_in_turns(contenders, budget_s=share * group.budget_s)
        except RivalFailed as failure:
            failure.entry = names.get(failure.rival)
            raise
    return as_figures(timings)


def measure_door(door: doors.Door, share: float) -> dict[str, Any]:
    """Return the timings of a door; none, and why, where a package is missing."""
    if door.missing:
        return {"missing": door.missing}
    return {"timings": as_figures(doors.measure(door, share=share))}


def as_figures(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Return timings as they are kept."""
    return {
        name: {
            "latency_s": rounded(timing.latency_s),
            "sustained_s": rounded(timing.sustained_s),
            "turns_s": [rounded(seconds) for seconds in timing.turns_s],
        }
        for name, timing in timings.items()
    }


def measure_costs(share: float) -> dict[str, Any]:
    """Return processor times, the idle server's share, and servers' memory."""
    exchanges = {
        f"{semantics} {transport}": costs.exchange_processor_s(semantics, transport)
        for semantics in ("async-apply", "async-lockfree")
        for transport in ("shm", "tcp")
    }
    memory = {
        f"{semantics} {size}": costs.server_memory(semantics, size)
        for semantics in ("async-apply", "async-lockfree")
        for size in ("alexnet", "resnet50")
    }
    return {
        "exchange_processor_s": exchanges,
        "alexnet_step_s": costs.alexnet_step(),
        "idle_share": costs.idle_share(seconds=max(1.0, 10.0 * share)),
        "server_memory_bytes": memory,
    }


def measure_stores() -> dict[str, Any]:
    """Return updates a second of the bare stores, by guard and threads: in cache."""
    if not BENCH_STORES.exists():
        raise FileNotFoundError(f"{BENCH_STORES.relative_to(ROOT)} is not built; `make bench` builds it")
    text = subprocess.run([BENCH_STORES, "1068298", "11"], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^(\S.*?)\s+(\d+) threads\s+([\d.]+) updates/s\s+([\d.]+) of", text, re.MULTILINE)
    return {f"{guard} {threads}": {"per_s": float(rate), "ratio": float(ratio)} for guard, threads, rate, ratio in rows}


def measure_training(share: float) -> dict[str, Any]:
    """Return what two training workers reach, as ratios to workers that do not communicate."""
    turns = max(2, round(8 * share))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "training.json"
        command = [sys.executable, str(Path(__file__).parent / "training_ratio.py"), "--json", str(file)]
        done = subprocess.run(
            [*command, "--turns", str(turns), "--steps", "6"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TRAINING_PATIENCE_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError("\n".join(done.stderr.splitlines()[-5:]))
        figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def about(*, seconds: float, share: float, only: str | None) -> dict[str, Any]:
    """Return what the figures were measured with."""
    found = versions()
    for name in RIVAL_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(),
        "versions": found,
        "seconds": round(seconds),
        "share": share,
        "only": only,
    }


def rounded(seconds: float) -> float:
    """Keep the digits that mean something."""
    return float(f"{seconds:.{_DIGITS}g}")


def _available_bytes() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 1 << 62


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
