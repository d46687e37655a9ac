"""The example of Keras: one unmodified script with a stock network that trains on each of the three backends."""

from __future__ import annotations

from pathlib import Path

import pytest
from launchers import require_these, run_job, succeeded
from own_examples import Example, check_example

ROOT = Path(__file__).parents[2]
PICTURES = Example(script="keras/pictures.py", ends="accuracy on new pictures", semantics="sync")


def test_every_example_is_short_and_in_the_list_and_says_how_it_is_started() -> None:
    assert [path.name for path in (ROOT / "examples/keras").glob("*.py")] == ["pictures.py"]
    check_example(PICTURES, f"KERAS_BACKEND=torch {PICTURES.command}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", [pytest.param("tensorflow", marks=pytest.mark.door), "torch", "jax"])
def test_a_stock_network_trains_by_fit_on_each_backend(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_these("keras", backend)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    job = succeeded(run_job("distnet run", PICTURES.path, "2", folder=tmp_path, options=PICTURES.options))
    (first, first_later), (second, second_later) = (
        [loss for rank, _, loss in job.losses if rank == own] for own in "01"
    )
    assert (first, first_later) == (second, second_later)  # those of both ranks together
    assert first_later < first
    (accuracy, same) = PICTURES.found_in(job)
    assert accuracy == same > PICTURES.reaches, job.text
    assert (tmp_path / "pictures.keras").exists()
    log = (tmp_path / "pictures.csv").read_text()
    assert len(log.splitlines()) == 3, log  # a heading, and a line for each epoch: rank 0 alone writes
