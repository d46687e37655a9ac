"""A synchronous job that is interrupted and taken up again ends with the parameters of one that was not, to the bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from test_run import command

import distnet
from distnet.checkpoint import Checkpoint, load
from distnet.launch.ending import save_before_the_workers_end

STEPS = 12
SCRIPT = """
import os, sys, time
import numpy as np
import distnet

steps, last_step, slow_rank, at_the_end = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
client = distnet.connect(parameters={"w": np.ones((30, 50), np.float32), "b": np.zeros(50, np.float32)})
rank, arrays = client.rank, client.pull()
try:
    for step in range(int(client.saved or 0), steps):
        random = np.random.default_rng([rank, step])
        gradients = {name: random.standard_normal(a.shape, np.float32) + a / 3 for name, a in arrays.items()}
        time.sleep(0.005 * rank)
        if step == last_step:
            print(f"rank {rank} is at step {step}", flush=True)
            if rank == slow_rank:
                time.sleep(100)
        client.save_with(str(step + 1).encode())
        arrays = client.push_pull(gradients)
except KeyboardInterrupt:
    if at_the_end == "leaves":
        client.close()
    raise
client.close()
"""
OPTIONS = (
    *("-n", "2", "--semantics", "sync", "--ema-decay", "0.9"),
    *("--optimizer", "momentum(0.05, momentum=0.9)", "--schedule", "cosine(updates=12)"),
)


def bits(checkpoint: Checkpoint) -> bytes:
    """Return all numbers of a state that updates change."""
    vectors = [checkpoint.parameters, checkpoint.ema, *checkpoint.optimizer_state]
    return b"".join(np.asarray(vector[name]).tobytes() for vector in vectors for name in ("w", "b"))  # type: ignore[call-overload]


def test_rounds_that_were_interrupted_in_every_way_go_on_to_the_bit(tmp_path: Path) -> None:
    """At each signal one worker computes, and the other one's push waits for it."""
    path, kept, whole = tmp_path / "script.py", tmp_path / "kept", tmp_path / "whole"
    path.write_text(SCRIPT)
    with command("run", *OPTIONS, "--checkpoint", whole, path, str(STEPS), "-1", "-1", "leaves") as run:
        assert run.finish() == 0, run.text
    interruptions = [
        (2, 0, "leaves", signal.SIGINT, False),
        (5, 1, "leaves", signal.SIGTERM, False),
        (9, 0, "dies", signal.SIGTERM, True),
    ]
    for step, slow_rank, at_the_end, number, to_all in interruptions:
        arguments = (str(STEPS), str(step), str(slow_rank), at_the_end)
        with command("run", *OPTIONS, "--resume", kept, path, *arguments) as run:
            for rank in (0, 1):
                run.line(f"rank {rank} is at step {step}")
            for pid in (*(run.children() if to_all else ()), run.process.pid):
                os.kill(pid, number)
            assert run.finish() == 128 + number, run.text
        assert load(kept).version == step, run.text
    with command("run", *OPTIONS, "--resume", kept, path, str(STEPS), "-1", "-1", "leaves") as run:
        assert run.finish() == 0, run.text
    uninterrupted, resumed = load(whole), load(kept)
    assert resumed.version == uninterrupted.version == STEPS
    assert resumed.saved == uninterrupted.saved == {0: b"12", 1: b"12"}
    assert bits(resumed) == bits(uninterrupted)


class _Writing:
    """A server that is told to stop so often while it writes."""

    semantics = distnet.SEMANTICS["sync"]

    def __init__(self, times: int) -> None:
        self._times = times
        self.written = False

    def write_last_checkpoint(self) -> None:
        for _ in range(self._times):
            os.kill(os.getpid(), signal.SIGINT)
        self.written = True


def test_a_second_signal_does_not_break_the_writing_and_a_third_does() -> None:
    for times, written in ((0, True), (1, True), (2, False)):
        server, said = _Writing(times), []  # type: ignore[var-annotated]
        save_before_the_workers_end(server, said.append)  # type: ignore[arg-type]
        assert server.written is written
        assert said == ["writing the checkpoint; once more to give it up"][: min(times, 1)]
