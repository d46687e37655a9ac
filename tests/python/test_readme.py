"""What the README shows works as it stands there."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMAND_LINES = re.findall(r"(?:^|`|\$ |/)distnet ([a-z]+ (?!--help)[^`\n#]+)", README, re.MULTILINE)


def test_the_api_example_runs_as_it_stands() -> None:
    example = next(block for block in BLOCKS if "ParameterServer" in block)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("shm 1 0\n1 "), done.stdout


@pytest.mark.parametrize(("framework", "script"), [("torch", "train.py"), ("tensorflow", "fit.py")])
def test_the_models_of_ones_own_train_as_they_stand(tmp_path: pathlib.Path, framework: str, script: str) -> None:
    pytest.importorskip(framework)
    pytest.importorskip("click")
    (tmp_path / script).write_text(next(block for block in BLOCKS if block.startswith(f"# {script}")))
    line = next(line for line in COMMAND_LINES if line.startswith("run -n 2") and line.endswith(" train.py"))
    line = line.replace("train.py", script)
    done = subprocess.run(
        [sys.executable, "-m", "distnet", *shlex.split(line)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"rank (\d): loss 0\.", done.stdout)) == ["0", "1"], done.stdout
    assert (tmp_path / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_its_command_lines_have_options_that_there_are(line: str) -> None:
    click = pytest.importorskip("click")
    from distnet.cli.commands import distnet
    from distnet.cli.server_options import job_settings
    from distnet.settings.job import JobSettings

    name, *arguments = shlex.split(line)
    context = click.Context(distnet, info_name="distnet")
    command = distnet.get_command(context, name)
    assert command is not None
    options = command.make_context(name, arguments, parent=context).params
    if name == "run":
        names = {"config_file", *(field.name for field in dataclasses.fields(JobSettings))}
        job_settings(**{option: value for option, value in options.items() if option in names})


def test_command_lines_are_found() -> None:
    assert {line.split()[0] for line in COMMAND_LINES} >= {"run", "serve", "worker"}
