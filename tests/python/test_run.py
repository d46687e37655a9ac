"""`distnet run` and `serve` as processes: output, lost workers and servers, scripts that never connect, ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click")

import distnet

WITHIN_S = 100.0
TRAINS = """
import os, signal, sys, time
import numpy as np
import distnet
rank, start = int(os.environ["DISTNET_RANK"]), int(os.environ["DISTNET_START"])
client = distnet.connect(parameters=[np.zeros(4, np.float32)])
def step():
    client.push_pull([np.ones(4, np.float32)])
"""


class Command:
    """A command of DistNet as a process; what it writes is read by a thread, both streams as one."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distnet", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def line(self, *words: str) -> str:
        """Wait for the first line that has all of these words in it."""

        def found() -> str | None:
            return next((line for line in self.lines if all(word in line for word in words)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._ended, WITHIN_S)
        line = found()
        assert line is not None, f"no line with {words}:\n" + self.text
        return line

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(WITHIN_S)
        self._reader.join(WITHIN_S)
        return code

    @property
    def text(self) -> str:
        """All lines so far."""
        return "\n".join(self.lines)

    def children(self, word: str = "") -> list[int]:
        """Return the process ids of its children that have the word in their command lines."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in pids if word in Path(f"/proc/{pid}/cmdline").read_text()]

    def end(self) -> None:
        """Kill it where a test left it alive."""
        if self.process.poll() is None:
            self.process.kill()
        self.finish()


@contextlib.contextmanager
def command(*arguments: str | Path) -> Iterator[Command]:
    """Run a command for the block."""
    running = Command(*map(str, arguments))
    try:
        yield running
    finally:
        running.end()


def script(folder: Path, text: str, *, trains: bool = True) -> Path:
    """Write a worker's script."""
    path = folder / "script.py"
    path.write_text((TRAINS if trains else "") + text)
    return path


def in_order(lines: Sequence[str], *words: str) -> bool:
    """Whether lines with these words come one after another."""
    rest = iter(lines)
    return all(any(word in line for line in rest) for word in words)


def test_a_bar_is_shown_while_it_moves_and_a_script_that_never_connects_is_an_error(tmp_path: Path) -> None:
    go = tmp_path / "go"
    text = f"""
import os, sys, time
print("\\r 10 %|#   |", end="", file=sys.stderr, flush=True)
while not os.path.exists({str(go)!r}):
    time.sleep(0.02)
print("\\r100 %|####|", file=sys.stderr)
"""
    with command("run", "-n", "2", script(tmp_path, text, trains=False)) as run:
        assert run.line("worker 0", "10 %") == "[worker 0]  10 %|#   |"
        assert run.line("worker 1", "10 %") == "[worker 1]  10 %|#   |"
        go.touch()
        assert run.finish() == 1
        assert "[worker 0] 100 %|####|" in run.lines
        assert run.lines[-1].startswith(
            "distnet: NeverConnected: no worker connected: every copy of the script ended without distnet.connect(); "
        )


def test_the_others_go_on_without_a_killed_worker_and_the_end_says_so(tmp_path: Path) -> None:
    text = """
step()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
step()
client.close()
print("rank", rank, "trained")
"""
    with command("run", "-n", "2", script(tmp_path, text)) as run:
        assert run.finish() == 1
        assert [line for line in run.lines if "trained" in line] == ["[worker 0] rank 0 trained"]
        assert run.lines[-1] == (
            "distnet: ChildDied: worker 1 was killed by SIGKILL (out of memory?); the other workers went on without it"
        )
        assert in_order(run.lines, "worker 1 was killed", "done: 3 updates")


def test_sync_stops_at_the_first_failure_and_names_it(tmp_path: Path) -> None:
    text = """
try:
    step()
    if rank == 1:
        sys.exit(3)
    while True:
        step()
        time.sleep(0.01)
finally:
    print("rank", rank, "put its things away")
"""
    with command("run", "-n", "2", "--semantics", "sync", script(tmp_path, text)) as run:
        assert run.finish() == 1
        assert run.lines[-1] == "distnet: ChildDied: worker 1 ended with exit code 3; the other workers were stopped"
        assert "[worker 0] rank 0 put its things away" in run.lines
        assert "Traceback" not in run.text


def test_rounds_wait_for_a_worker_that_starts_again(tmp_path: Path) -> None:
    text = """
for _ in range(3): step()
if rank == 1 and start == 0:
    raise ValueError("no milk")
for _ in range(3): step()
client.close()
"""
    options = ["--semantics", "sync", "--on-loss", "wait", "--max-restarts", "1"]
    with command("run", "-n", "2", *options, script(tmp_path, text)) as run:
        assert run.finish() == 0, run.text
        again = "worker 1 ended with exit code 1 (ValueError: no milk); it starts again in 1 s (restart 1 of 1)"
        assert in_order(run.lines, again, "worker 1 connected again")
        assert "done: 9 updates in" in run.text  # the worker that started again does all of its steps


def test_rounds_that_a_loss_ends_name_the_worker_that_was_lost(tmp_path: Path) -> None:
    text = """
step()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    step()
"""
    with command("run", "-n", "2", "--semantics", "sync", "--on-loss", "abort", script(tmp_path, text)) as run:
        assert run.finish() == 1
        assert run.lines[-1] == (
            "distnet: ChildDied: worker 1 was killed by SIGKILL (out of memory?); 1 more worker failed after it"
        )


def test_a_worker_that_hangs_is_killed_and_starts_again_while_the_rounds_wait(tmp_path: Path) -> None:
    text = """
if start: time.sleep(4)  # imports that take longer than a silent worker is left alone
client = distnet.connect(parameters=[np.zeros(4, np.float32)], timeout=2 if (rank, start) == (1, 0) else 30)
for _ in range(3): step()
if rank == 1 and start == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
for _ in range(3): step()
client.close()
"""
    path = script(tmp_path, TRAINS.replace("client = ", "# ") + text, trains=False)
    with command("run", "-n", "2", "--semantics", "sync", "--max-restarts", "1", path) as run:
        assert run.finish() == 0, run.text
        hung = "worker 1 hung, and was killed: the server heard nothing from it for its timeout; it starts again"
        assert in_order(run.lines, "worker 1 is lost: nothing was heard", hung, "worker 1 connected again")
        assert "done: 9 updates in" in run.text


def test_how_workers_end_is_said_as_it_is(tmp_path: Path) -> None:
    text = """
step()
if rank == 1:
    os._exit(0)
client.close()
sys.exit(7)
"""
    with command("run", "-n", "2", script(tmp_path, text)) as run:
        assert run.finish() == 1
        run.line("worker 1 ended with exit code 0, but without client.close(): the server counts it as lost")
        assert "is done" not in run.text
        assert "distnet: ChildDied: worker 0 ended with exit code 7" in run.lines[-1]


def test_a_dead_server_is_named_and_not_the_workers_that_lost_it(tmp_path: Path) -> None:
    text = """
print("rank", rank, "trains", flush=True)
while True:
    step()
"""
    with command("run", "-n", "2", "--servers", "2", script(tmp_path, text)) as run:
        run.line("rank 0 trains")
        run.line("rank 1 trains")
        os.kill(run.children("shards.main")[1], signal.SIGKILL)
        assert run.finish() == 1
        assert run.lines[-1] in {  # one may have failed by itself already
            f"distnet: ChildDied: server 1 was killed by SIGKILL (out of memory?); the {which} were stopped"
            for which in ("workers", "other workers")
        }


def test_a_server_of_a_job_of_another_size_is_refused_and_one_that_dies_is_named(tmp_path: Path) -> None:
    path = script(tmp_path, 'print("rank", rank, "trains", flush=True)\nwhile True: step()\n')
    with command("serve", "--address", "tcp://127.0.0.1:0", "--workers", "2", "--semantics", "sync") as serve:
        address = serve.line("serving at").split()[-1]
        distnet.connect(address, 0, parameters=[np.zeros(4, np.float32)]).close()
        with command("run", "--join", address, "--workers", "4", "--ranks", "0-3", path) as run:
            assert run.finish() == 2
            assert run.lines == [f"distnet: --workers is 4, but the server at {address} expects 2"]
        with command("run", "--join", address, "--workers", "2", "--ranks", "1", path) as run:
            run.line("rank 1 trains")
            run.line("worker 1 connected")
            for pid in (serve.process.pid, *serve.children("shards.main")):
                os.kill(pid, signal.SIGKILL)
            assert run.finish() == 1
            assert run.lines[-1] == f"distnet: PeerClosed: the server at {address} is gone"


def test_a_launched_worker_refuses_a_server_of_another_size_before_it_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [np.zeros(4, np.float32)]
    with distnet.ParameterServer(None, workers=2) as server:
        for name, value in (("ADDRESS", server.address), ("RANK", "1"), ("WORKERS", "4")):
            monkeypatch.setenv(f"DISTNET_{name}", value)
        with distnet.connect(server.address, 0, parameters=parameters):  # an address that is given asks nobody
            with pytest.raises(distnet.ConfigError, match=r"one of 4 workers, but the server at .* expects 2"):
                distnet.connect()
            monkeypatch.setenv("DISTNET_WORKERS", "2")
            with distnet.connect() as client:
                client.push(parameters)
        assert server.stats().updates == 1


def test_rounds_do_not_wait_for_a_rank_that_leaves_without_connecting(tmp_path: Path) -> None:
    text = (
        """
import os, sys
if os.environ["DISTNET_RANK"] == "1":
    sys.exit()
"""
        + TRAINS
    )
    text += "for _ in range(5): step()\nclient.close()\n"
    with command("run", "-n", "2", "--semantics", "sync", script(tmp_path, text, trains=False)) as run:
        assert run.finish() == 0, run.text
        assert "distnet: worker 1 ended without distnet.connect(); nobody waits for it" in run.lines
        assert "done: 5 updates" in run.text


def test_a_job_that_is_told_to_stop_ends_in_order(tmp_path: Path) -> None:
    text = """
try:
    print("rank", rank, "trains", flush=True)
    while True:
        step()
        time.sleep(0.01)
finally:
    print("rank", rank, "put its things away", flush=True)
"""
    with command("run", "-n", "2", "--semantics", "sync", script(tmp_path, text)) as run:
        run.line("rank 0 trains")
        run.line("rank 1 trains")
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 130, run.text
        assert run.lines[-1] == "distnet: stopped by Ctrl-C"
        assert in_order(run.lines, "distnet: stopped after", "distnet: the model was not kept; --checkpoint DIR keeps")
        assert "Traceback" not in run.text
        assert run.text.count("put its things away") == 2


def test_a_job_whose_every_process_is_told_to_stop_leaves_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    text = """
for _ in range(int(sys.argv[1])):
    step()
    print("rank", rank, "trains", flush=True)
    time.sleep(0.01)
client.close()
"""
    path, kept = script(tmp_path, text), tmp_path / "kept"
    with command("run", "-n", "2", "--semantics", "sync", "--resume", kept, path, "100000") as run:
        run.line("kept holds no checkpoint yet")
        run.line("rank 1 trains")
        for pid in (*run.children(), run.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert run.finish() == 143, run.text
        assert "ChildDied" not in run.text
        assert in_order(run.lines, "distnet: the model is in", "distnet: told to stop by SIGTERM")
    (file,) = kept.glob("*.safetensors")
    with command("run", "-n", "2", "--semantics", "sync", "--resume", kept, path, "3") as run:
        assert run.finish() == 0, run.text
        assert f"distnet: going on from {file}: update" in run.text
        updates = distnet.checkpoint.load(kept).version
        assert updates == distnet.checkpoint.load(file).version + 3
        assert f"done: {updates:,} updates in" in run.lines[-1]
        assert run.lines[-1].endswith(f"the model is in {kept / f'checkpoint-{updates:012d}.safetensors'}")


def test_a_last_checkpoint_that_cannot_be_written_fails_a_job_that_is_done(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    text = f"""
step()
import pathlib, shutil
shutil.rmtree({str(kept)!r})
pathlib.Path({str(kept)!r}).touch()
client.close()
"""
    with command("run", "-n", "1", "--checkpoint", kept, script(tmp_path, text)) as run:
        assert run.finish() == 1, run.text
        assert "distnet: the last checkpoint was not written, and there is none before it: " in run.text
        assert run.text.count("the last checkpoint was not written") == 1
        assert "done: 1 update in" in run.lines[-2]
        assert run.lines[-1].startswith("distnet: NotKept: the job ended without its last checkpoint; ")


def test_workers_of_two_machines_join_a_server(tmp_path: Path) -> None:
    path = script(tmp_path, "for _ in range(3): step()\nclient.close()\n")
    with command("serve", "--address", "tcp://127.0.0.1:0", "--workers", "3", "--semantics", "sync") as serve:
        address = serve.line("serving at").split()[-1]
        assert f"distnet run --join {address} --workers 3 --ranks 0-2 SCRIPT" in serve.line("--join")
        with (
            command("run", "--join", address, "--workers", "3", "--ranks", "0", path) as one,
            command("run", "--join", address, "--workers", "3", "--ranks", "1-2", path) as other,
        ):
            assert one.finish() == 0, one.text
            assert other.finish() == 0, other.text
        assert serve.finish() == 0, serve.text
        assert "done: 3 updates" in serve.text
        assert in_order(serve.lines, "connected", "done")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--join", "tcp://127.0.0.1:1"], "--join needs --ranks"),
        (["--join", "tcp://127.0.0.1:1", "--ranks", "0-1"], "--workers is missing"),
        (["--join", "tcp://127.0.0.1:1", "--ranks", "2", "--workers", "2"], "ranks are 0 to 1"),
        (["--join", "tcp://127.0.0.1:1", "--ranks", "1", "--semantics", "sync"], "--semantics is the server's"),
        (["--ranks", "1"], "--ranks goes with --join"),
        (["--max-restarts", "-1"], "--max-restarts is -1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    from distnet.cli.main import main

    assert main(["run", *options, "script.py"]) == 2
    assert message in capsys.readouterr().err
