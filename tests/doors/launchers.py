"""Runs a script as the two ranks of a job, under PyTorch's launcher or under DistNet's, and reads what it printed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

RANKS = 2
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)],
    "distnet run": ["distnet", "run", "-n", str(RANKS)],
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two ranks on few processors, and the same sums under both launchers
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded
}
WITHIN_S = 240.0
STOPS_WITHIN_S = 45.0  # torchrun gives its ranks 30 s
_LOSS = re.compile(r"(?:rank (\d): (?:epoch|step) (\d+): loss |'loss': '?)(\d+\.\d+)")


@dataclasses.dataclass(frozen=True)
class Finished:
    """A job that has ended.

    Attributes:
        code: the launcher's exit code.
        text: what the ranks and the launcher wrote.
    """

    code: int
    text: str

    @property
    def losses(self) -> list[tuple[str, str, float]]:
        """Return each loss after its rank and its epoch or step, in their order; both are "" in those of a Trainer."""
        found = ((rank, place, float(loss)) for rank, place, loss in _LOSS.findall(self.text))
        return sorted(found, key=lambda loss: (loss[0], int(loss[1] or 0)))


def require(*packages: str) -> None:
    """Skip the test where PyTorch or a package is missing; they are not imported here, which takes seconds."""
    require_these("torch", *packages)


def require_these(*packages: str) -> None:
    """Skip the test where a package is missing."""
    for package in ("click", *packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: `make test-doors` installs it where it is to be had")


def succeeded(job: Finished) -> Finished:
    """Return a job that ended well."""
    assert job.code == 0, job.text
    return job


def run_job(launcher: str, script: Path, *arguments: str, folder: Path, options: Sequence[str] = ()) -> Finished:
    """Run a script as the ranks of a job, and return what became of it.

    Args:
        launcher: one of :data:`LAUNCHERS`.
        script: which each rank runs.
        arguments: of the script.
        folder: where it runs, and where its output is kept.
        options: of the launcher.
    """
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *options, str(script), *arguments]
    written = folder / "output.txt"
    with written.open("w") as output:  # a file: a rank that outlives its launcher would hold a pipe open
        job = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **ENVIRONMENT}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = job.wait(WITHIN_S)
        except BaseException:
            _stop(job)
            print(written.read_text(errors="replace"))
            raise
    return Finished(code, written.read_text(errors="replace"))


def _stop(job: subprocess.Popen[bytes]) -> None:
    job.send_signal(signal.SIGTERM)  # so that it stops its ranks
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(STOPS_WITHIN_S)
    job.kill()
    job.wait()
