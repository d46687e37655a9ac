"""The command line: help that reads well, exit codes, and one clear message for whatever is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("tensorboardX")

from distnet.cli import main
from distnet.commands import COMMANDS

ROOT = Path(__file__).parents[2]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; returns its exit code and what it wrote."""
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "distnet", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], within_s: float = 110.0) -> tuple[int, str, str]:
    """Wait for a command's end."""
    try:
        output, errors = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


# ---- help ------------------------------------------------------------------------------------------------------------
def test_the_list_of_commands_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = said(capsys, "--help")
    assert code == 0
    assert "..." not in output.partition("Commands:")[2]
    for name in COMMANDS:
        assert f"\n  {name} " in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, output, errors = said(capsys, name, "--help")
    assert code == 0
    assert output.startswith(f"Usage: distnet {name}")
    assert errors == ""
    assert "--json" in output


def test_the_module_can_be_run() -> None:
    code, output, _ = finish(start("--help"))
    assert code == 0
    assert "train --demo" in output


# ---- wrong settings: exit code 2, one message ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--workers", "0"], "workers is 0; expected a whole number from 1 to 1024"),
        (["train", "--semantics", "async-lockfre"], "did you mean 'async-lockfree'?"),
        (["train", "--recipe", "tutorail"], "no recipe is named 'tutorail'; did you mean 'tutorial'?"),
        (["train", "--config", "/no/such/file.toml"], "cannot read /no/such/file.toml: No such file or directory"),
        (["train", "--semantics", "async-sharded", "--servers", "1"], "async-sharded needs at least 2 servers, not 1"),
        (["train", "--epochs", "1", "--steps", "5"], "give one of them"),
        (["compare", "--semantics", "sync,asink"], "no semantics is named 'asink'"),
        (["compare", "--seeds", "1,two"], "expected whole numbers with commas between"),
        (["compare", "--seeds", "1,1"], "names a seed twice"),
        (["worker", "--rank", "0"], "--address is missing"),
        (["worker", "--address", "tcp://127.0.0.1:1", "--rank", "2"], "rank is 2; expected 0 to 1 with 2 workers"),
        (["run", "--semantics", "synk", "script.py"], "did you mean 'sync'?"),
        (["run", "--optimizer", "adm", "script.py"], "did you mean 'adam'?"),
        (["run", "-n", "0", "script.py"], "workers is 0"),
        (["serve", "--checkpoint", "/no/such/folder/x"], "there is no folder /no/such/folder"),
        (["bench", "--sizes", "huge"], "no size is named 'huge'"),
        (["bench", "--transport", "rdma"], "no transport is named 'rdma'"),
    ],
)
def test_a_wrong_setting_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    place = ["--out", str(tmp_path / "run")] if arguments[0] in ("train", "compare") else []
    code, output, errors = said(capsys, *arguments, *place)
    assert code == 2
    assert output == ""
    assert message in errors
    assert errors.startswith("distnet: ")
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--wrokers", "2"], ["train", "--workers", "two"], ["run"]])
def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, _, errors = said(capsys, *arguments)
    assert code == 2
    assert "Error: " in errors


def test_a_folder_that_cannot_be_written_is_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = said(capsys, "train", "--out", str(tmp_path / "file" / "run"))
    assert code == 1
    assert "cannot write" in errors
    assert "Not a directory" in errors


def test_data_that_are_not_there_are_named_by_the_launcher(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, errors = said(capsys, "train", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in errors


def test_a_missing_extra_is_one_line() -> None:
    program = "import sys; sys.modules['click'] = None; from distnet.cli import main; sys.exit(main(['train']))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "distnet: this needs the package click; install it with: pip install 'distnet[train]'\n"


# ---- whole commands --------------------------------------------------------------------------------------------------
needs_engine = pytest.mark.skipif(
    not any((ROOT / "distnet").glob("_native*.so")) and "_native" not in os.listdir(ROOT / "distnet"),
    reason="the native module is not built",
)

SCRIPT = """
import sys
import numpy as np
import distnet

client = distnet.connect({connect})
gradient = [np.ones(4, np.float32), np.ones((2, 3), np.float32)]
for _ in range(5):
    client.push_pull(gradient)
client.close()
print("rank", client.rank, sys.argv[1:])
"""
