"""The examples of JAX: unmodified scripts, plain and of Flax, whose workers end with one model."""

from __future__ import annotations

from pathlib import Path

import pytest
from launchers import require_these, run_job, succeeded
from own_examples import Example, check_example

ROOT = Path(__file__).parents[2]
PLAIN = Example(script="jax/plain.py", ends="accuracy on new points", short="4")
FLAX = Example(
    script="jax/flax_local.py", ends="accuracy on new pictures", short="3", semantics="sync", needs=("flax", "optax")
)
EXAMPLES = (PLAIN, FLAX)


def test_every_example_is_short_and_in_the_list_and_says_how_it_is_started() -> None:
    scripts = (ROOT / "examples/jax").glob("*.py")
    assert {f"jax/{path.name}" for path in scripts} == {example.script for example in EXAMPLES}
    for example in EXAMPLES:
        check_example(example)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", [PLAIN, pytest.param(FLAX, marks=pytest.mark.door)], ids=lambda each: each.script)
def test_an_unmodified_script_trains_and_ends_with_one_model(example: Example, tmp_path: Path) -> None:
    require_these("jax", *example.needs)
    job = succeeded(run_job("distnet run", example.path, example.short, folder=tmp_path, options=example.options))
    for rank in ("0", "1"):
        losses = [loss for own, _, loss in job.losses if own == rank]
        assert len(losses) == int(example.short)
        assert losses[-1] < losses[0]
    (accuracy, same) = example.found_in(job)
    assert accuracy == same > example.reaches, job.text
