"""Trainers whose averaging is off and whose optimizer is at a server: their ranks never wait for each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launchers import require, run_job, succeeded

SCRIPTS = Path(__file__).parent / "scripts"
EPOCHS, UPDATES = 15, 15 * 2_048 // 64
NEEDS = {
    "lightning_async.py": ["lightning"],
    "accelerate_async.py": ["accelerate"],
    "trainer_async.py": ["transformers", "accelerate"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", NEEDS)
@pytest.mark.parametrize("launcher", ["torchrun", "distnet run"])
def test_each_step_of_each_rank_is_an_update_and_all_end_with_one_model(
    script: str, launcher: str, tmp_path: Path
) -> None:
    require(*NEEDS[script])
    job = succeeded(run_job(launcher, SCRIPTS / script, "distnet", str(EPOCHS), folder=tmp_path))
    ends = re.findall(r"rank (\d): accuracy (.+)% checksum (\w+) updates (\d+)", job.text)
    assert sorted(rank for rank, *_ in ends) == ["0", "1"], job.text
    assert len({checksum for _, _, checksum, _ in ends}) == 1, job.text
    assert [int(updates) for *_, updates in ends] == [UPDATES, UPDATES]
    assert min(float(accuracy) for _, accuracy, *_ in ends) > 85, job.text
