"""What the README shows works as it stands there: each block is run, or is in a list with the reason why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import check_command_line

import distnet

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SCRIPTS = {match[1]: text for text in PYTHON if (match := re.match(r"# (\w+\.py)\n", text))}
SHELL_LINES = [
    line.partition(" #")[0].strip()
    for language, text in BLOCKS
    if not language and "▶" not in text  # the drawing
    for line in text.splitlines()
]
README_ROWS = {  # the last three columns of the table of semantics, by its first
    cells[0]: cells[-3:]
    for line in README.splitlines()
    if line.startswith("|") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7
}
# What no test runs as it is printed, by how the line begins, and why.
NOT_RUN = {
    "make demo": "it installs everything and trains for minutes",
    ". .venv/bin/activate": "the tests run in their own environment already",
    "pip install": "it compiles the package; `make package` installs the wheel into an environment of its own",
    "host-a$ ": "it takes two machines; test_examples.py plays both, on one",
    "host-b$ ": "it takes two machines; test_examples.py plays both, on one",
    "distnet train ": "it trains AlexNet for an hour; test_alexnet.py and test_cli.py do so for some steps",
    "distnet evaluate ": "it scores the training above; test_cli.py scores a shorter one",
}
COMMAND_LINES = re.findall(r"(?:^|`|\$ |/)distnet ([a-z]+ (?!--help)[^`\n#]+)", README, re.MULTILINE)
FRAMEWORKS = {"train.py": "torch", "fit.py": "tensorflow", "examples/numpy_softmax.py": "numpy"}


def reason_not_to_run(line: str) -> str | None:
    """Return why no test runs a line of a shell block; None: one does."""
    return next((reason for beginning, reason in NOT_RUN.items() if line.startswith(beginning)), None)


LINES_TO_RUN = [line for line in SHELL_LINES if reason_not_to_run(line) is None]


def test_every_line_of_a_shell_block_is_run_or_has_a_reason() -> None:
    assert len(LINES_TO_RUN) >= 4
    assert [line for line in LINES_TO_RUN if not line.startswith("distnet run ")] == []
    unused = [beginning for beginning in NOT_RUN if not any(line.startswith(beginning) for line in SHELL_LINES)]
    assert unused == []
    assert {language for language, _ in BLOCKS} == {"", "python"}


def test_every_script_is_started_by_a_line() -> None:
    started = {shlex.split(line)[-1] for line in LINES_TO_RUN}
    assert started == set(FRAMEWORKS)
    assert set(SCRIPTS) <= started


def test_the_api_blocks_run_one_after_another(tmp_path: Path) -> None:
    program = "".join(text for text in PYTHON if text not in SCRIPTS.values())
    assert program.count("ParameterServer(") == 3
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "shm 1 0"
    assert [line[:3] for line in others] == ["1 [", "1 ["], done.stdout
    assert (tmp_path / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("line", LINES_TO_RUN)
def test_its_lines_train_as_they_are_printed(line: str, tmp_path: Path) -> None:
    pytest.importorskip("click")
    arguments = shlex.split(line)[1:]
    pytest.importorskip(FRAMEWORKS[arguments[-1]])
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    os.symlink(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-m", "distnet", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    workers = int(arguments[arguments.index("-n") + 1])
    ranks = {int(rank) for rank in re.findall(r"rank (\d): (?:loss \d\.|final bias)", done.stdout)}
    assert ranks == set(range(workers)), done.stdout
    assert (tmp_path / "checkpoints" / "latest").exists() == ("--resume" in arguments)


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_its_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]*)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    assert len(links) > 4
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def results(run: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a comparison that docs/results keeps, by the name of the semantics or of the baseline."""
    text = (ROOT / "docs" / "results" / run / "compare.json").read_text(encoding="utf-8")
    return {row["name"]: row for row in json.loads(text)["rows"]}


def accuracy_of(row: dict[str, Any]) -> str:
    """Return a row's accuracy as the table has it: with its spread where there are several seeds."""
    accuracy = row["accuracy"]
    spread = f" ± {50 * (accuracy['max'] - accuracy['min']):.2f}" if len(row["seeds"]) > 1 else ""
    return f"{100 * accuracy['mean']:.2f} %{spread}"


@pytest.mark.parametrize("semantics", distnet.SEMANTICS)
def test_the_table_of_semantics_has_the_numbers_of_the_results(semantics: str) -> None:
    long, short = results("cifar10-jpeg-40-epochs")[semantics], results("cifar10-jpeg-3-epochs")[semantics]
    assert README_ROWS[f"`{semantics}`"] == [
        accuracy_of(long),
        accuracy_of(short),
        f"{short['speedup_all_cores']:.2f} ×",
    ]
    points = [100 * row["accuracy_less_baseline"] for row in (long, short)]
    cost = ", ".join(f"{point:+.1f}" for point in points).replace("-", "−").replace("+0.0", "0.0")
    assert semantics == "async-locked" or f"`{semantics}` ({cost})" in README, cost


def test_the_table_of_semantics_has_the_numbers_of_one_process() -> None:
    long = results("cifar10-jpeg-40-epochs")["baseline, one worker's cores"]
    short = results("cifar10-jpeg-3-epochs")["baseline, all cores"]
    assert README_ROWS["one process, no server"] == [accuracy_of(long), accuracy_of(short), "1 ×"]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_its_command_lines_have_options_that_there_are(line: str) -> None:
    check_command_line(line)


def test_command_lines_are_found() -> None:
    assert {line.split()[0] for line in COMMAND_LINES} >= {"run", "serve", "worker"}
