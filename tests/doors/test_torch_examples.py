"""The examples of trainers over PyTorch: unmodified scripts that train on DistNet as they do on gloo."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from launchers import LAUNCHERS, Finished, require, run_job, succeeded

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "torch"
MOST_LINES = 60


@dataclasses.dataclass(frozen=True)
class Example:
    """A script of examples/torch/.

    Attributes:
        script: its name.
        short: arguments for a few steps.
        losses: how many losses it prints then.
        needs: packages beside PyTorch.
        ends: the number that it prints at its end, after the whole training; None: it prints none.
        reaches: what that has to be at least.
    """

    script: str
    short: tuple[str, ...]
    losses: int
    needs: tuple[str, ...] = ()
    ends: str | None = None
    reaches: float = 0.0

    def __str__(self) -> str:
        return self.script


DDP = Example("ddp.py", ("--epochs", "1"), losses=2, ends=r"accuracy on new pictures: (.+)%", reaches=90)
FSDP2 = Example("fsdp2.py", ("--steps", "20"), losses=2)
ZERO = Example("zero.py", ("--epochs", "1"), losses=2)
LIGHTNING = Example("lightning_module.py", ("--epochs", "1"), losses=2, needs=("lightning",))
ACCELERATE = Example(
    "accelerate_loop.py", ("--epochs", "1"), losses=2, needs=("accelerate",), ends=r"accuracy: (.+)%", reaches=90
)
TRAINER = Example("trainer.py", ("--steps", "20"), losses=2, needs=("transformers", "accelerate"))
SYNCHRONOUS = (DDP, FSDP2, ZERO, LIGHTNING, ACCELERATE, TRAINER)
ASYNCHRONOUS = Example("async_under_ddp.py", (), losses=20, ends=r"accuracy on new points: (.+)%", reaches=90)

# What `.ci/run` runs: one case a door.
IN_CI = {(DDP, "torchrun"), (LIGHTNING, "torchrun"), (ACCELERATE, "torchrun"), (TRAINER, "torchrun")}


@pytest.fixture(scope="module")
def on_gloo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Example], Finished]:
    """Run the few steps of an example on gloo, each example once."""
    finished: dict[Example, Finished] = {}

    def of(example: Example) -> Finished:
        if example not in finished:
            script = EXAMPLES / example.script
            for _ in range(3):  # a rank on gloo aborts now and then as it ends
                folder = tmp_path_factory.mktemp("gloo")
                finished[example] = run_job("torchrun", script, "--backend", "gloo", *example.short, folder=folder)
                if finished[example].code == 0:
                    break
        return succeeded(finished[example])

    return of


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name)
def test_an_example_is_short_and_in_the_list_and_says_how_it_is_started(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert f"[torch/{script.name}](torch/{script.name})" in (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    commands = [shlex.split(line) for line in re.findall(r"^    (\S.+)$", docstring, re.MULTILINE)]
    path = f"examples/torch/{script.name}"
    run = ["distnet", "run", "-n", "2", "--threads-per-worker", "1", path]
    assert commands == [["torchrun", "--nproc_per_node", "2", path], run]
    assert script.name in {example.script for example in (*SYNCHRONOUS, ASYNCHRONOUS)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("example", "launcher"),
    [
        pytest.param(example, launcher, marks=[pytest.mark.door] if (example, launcher) in IN_CI else [])
        for example in SYNCHRONOUS
        for launcher in LAUNCHERS
    ],
    ids=str,
)
def test_an_unmodified_script_has_the_losses_that_it_has_on_gloo(
    example: Example, launcher: str, on_gloo: Callable[[Example], Finished], tmp_path: Path
) -> None:
    require(*example.needs)
    job = succeeded(run_job(launcher, EXAMPLES / example.script, *example.short, folder=tmp_path))
    expected = on_gloo(example).losses
    assert len(expected) == example.losses
    assert [loss[:2] for loss in job.losses] == [loss[:2] for loss in expected]
    assert [loss[2] for loss in job.losses] == pytest.approx([loss[2] for loss in expected], rel=1e-4, abs=2e-5)
    assert "the model was not kept" not in job.text  # the server of distnet run had none


@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", [example for example in SYNCHRONOUS if example.ends], ids=str)
def test_an_example_reaches_the_accuracy_that_it_speaks_of(example: Example, tmp_path: Path) -> None:
    require(*example.needs)
    job = succeeded(run_job("torchrun", EXAMPLES / example.script, folder=tmp_path))
    assert example.ends is not None
    (accuracy,) = re.findall(example.ends, job.text)
    assert float(accuracy) > example.reaches, job.text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", [pytest.param("torchrun"), pytest.param("distnet run", marks=pytest.mark.door)])
def test_ranks_that_never_wait_for_each_other_end_with_one_model(launcher: str, tmp_path: Path) -> None:
    require()
    job = succeeded(run_job(launcher, EXAMPLES / ASYNCHRONOUS.script, folder=tmp_path))
    assert len(job.losses) == ASYNCHRONOUS.losses
    assert ASYNCHRONOUS.ends is not None
    first, second = re.findall(ASYNCHRONOUS.ends, job.text)
    assert first == second
    assert float(first) > ASYNCHRONOUS.reaches, job.text


@pytest.mark.timeout(600)
def test_each_rank_keeps_its_share_alone(tmp_path: Path) -> None:
    require()
    for example, what in ((FSDP2, r"keeps (\d+) of (\d+) parameters"), (ZERO, r"state of (\d+) of (\d+) parameters")):
        job = succeeded(run_job("torchrun", EXAMPLES / example.script, *example.short, folder=tmp_path))
        kept = [(int(of_rank), int(of_all)) for of_rank, of_all in re.findall(what, job.text)]
        assert len(kept) == 2
        assert sum(of_rank for of_rank, _ in kept) == kept[0][1]
        assert max(of_rank for of_rank, _ in kept) < 0.6 * kept[0][1]
