"""What examples/ shows works, started as its docstrings say."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("click")

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
WITHIN_S = 100.0
MOST_LINES = 60


def commands_of(example: str) -> list[list[str]]:
    """Return the arguments of each `distnet` command in a script's docstring, with the script's whole path."""
    text = ast.get_docstring(ast.parse((EXAMPLES / example).read_text(encoding="utf-8"))) or ""
    lines = re.findall(r"^    (?:[\w-]+\$ )?distnet (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line.replace("examples/", f"{EXAMPLES}/")) for line in lines]


@contextlib.contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command of DistNet for the block, and no longer than that."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distnet", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    too_late = threading.Timer(WITHIN_S, process.kill)
    too_late.start()
    try:
        yield process
    finally:
        too_late.cancel()
        too_late.join()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """Read what a process writes until a line has these words in it, and return that line."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"no line with {words!r}:\n" + "".join(lines))


def all_of(process: subprocess.Popen[str], code: int = 0) -> str:
    """Return the rest of what a process writes, once it has ended with this exit code."""
    assert process.stdout is not None
    text = process.stdout.read()
    assert process.wait() == code, text
    return text


def output_of(example: str, folder: Path) -> str:
    """Run an example by the one command of its docstring, and return what it wrote."""
    (arguments,) = commands_of(example)
    with started(arguments, folder) as process:
        return all_of(process)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_an_example_is_short_and_in_the_list_with_its_command(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"[{script.name}]({script.name})" in table
    for arguments in commands_of(script.name):
        assert any(arguments == listed for listed in _listed_commands(table)), arguments


def _listed_commands(table: str) -> list[list[str]]:
    lines = re.findall(r"^(?:[\w-]+\$ )?distnet (.+)$", table.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line.replace("examples/", f"{EXAMPLES}/")) for line in lines]


def test_softmax_regression_learns_and_ends_with_one_model(tmp_path: Path) -> None:
    text = output_of("numpy_softmax.py", tmp_path)
    right = [float(per_cent) for per_cent in re.findall(r"rank 0: epoch \d: (.+)% right", text)]
    assert len(right) == 5, text
    assert right[-1] > 88, text
    first, second = re.findall(r"rank \d: final bias (\[.+\])", text)
    assert first == second


@pytest.mark.parametrize(("framework", "example"), [("tensorflow", "keras_spirals.py"), ("torch", "pytorch_rings.py")])
def test_a_frameworks_model_learns(framework: str, example: str, tmp_path: Path) -> None:
    pytest.importorskip(framework)
    text = output_of(example, tmp_path)
    assert len(re.findall(r"rank [01]: epoch \d+: loss", text)) == 20, text
    (right,) = re.findall(r"accuracy on new points: (.+)%", text)
    assert float(right) > 85, text


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_was_stopped_ends_with_the_parameters_of_one_that_was_not(
    how: signal.Signals, tmp_path: Path
) -> None:
    (arguments,) = commands_of("schedule_and_resume.py")
    (tmp_path / "left alone").mkdir()
    (tmp_path / "stopped").mkdir()
    with started(arguments, tmp_path / "left alone") as left_alone:
        with started(arguments, tmp_path / "stopped") as stopped:
            line_with(stopped, "rank 0: step 100, begun at 0")
            stopped.send_signal(how)
            assert "/stopped/kept/checkpoint-" in all_of(stopped, 128 + how)
        with started(arguments, tmp_path / "stopped") as resumed:
            assert int(line_with(resumed, "rank 0: step").rpartition("begun at ")[2]) >= 100
            ends = [all_of(resumed), all_of(left_alone)]
    checksums = [re.findall(r"rank \d: 500 steps; checksum of the parameters: (\w+)", end) for end in ends]
    assert len(checksums[0]) == 2, ends
    assert len({checksum for both in checksums for checksum in both}) == 1, checksums


def test_two_machines_train_one_model_over_tcp(tmp_path: Path) -> None:
    serve, first, second = commands_of("two_machines.py")
    serve[serve.index("tcp://0.0.0.0:7400")] = "tcp://127.0.0.1:0"
    with started(serve, tmp_path) as server:
        address = line_with(server, "serving at").split()[-1]
        first, second = (
            [address if "host-a" in word else word for word in words] + ["tcp"] for words in (first, second)
        )
        with started(first, tmp_path) as here, started(second, tmp_path) as there:
            texts = [all_of(here), all_of(there)]
        assert "done: 1,500 updates" in all_of(server)
    for rank, text in enumerate(texts):
        assert re.search(rf"rank {rank} on \S+ over tcp: points from", text), text
        (off,) = re.findall(r"is off by at most ([\d.]+)", text)
        assert float(off) < 0.3, text
