"""``distnet evaluate``: how well the parameters of a run's checkpoint do on its images."""

from __future__ import annotations

import json
from pathlib import Path

import click

from distnet.cli.options import json_option

__all__ = ["evaluate"]


@click.command(short_help="Score a run's latest checkpoint, or a checkpoint's file.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--parameters", is_flag=True, help="Score the parameters themselves, not their moving average (EMA).")
@click.option(
    "--data", metavar="cifar10|generated|DIR", help="Other images than the run's.  [default: the run's, else cifar10]"
)
@json_option
def evaluate(run: Path, parameters: bool, data: str | None, as_json: bool) -> None:
    """Score AlexNet's parameters on test images: accuracy and mean cross-entropy.

    RUN is the folder of a `distnet train`, whose latest checkpoint is scored on the run's own images; a folder of
    checkpoints; or a checkpoint's file. The run may be in progress.

    \b
    Examples:
      distnet evaluate runs/some-run
      distnet evaluate runs/some-run/checkpoints/latest --parameters
    """
    from distnet.alexnet.job.scoring import score

    result = score(run, parameters=parameters, data=data)
    if as_json:
        click.echo(json.dumps(result))
    else:
        rows = (
            ("checkpoint", f"{result['checkpoint']}, {result['updates']:,} updates"),
            ("scored", "the moving average (EMA)" if result["scored"] == "ema" else "the parameters themselves"),
            ("images", f"{result['examples']:,} of {result['data']}"),
            ("accuracy", f"{result['accuracy']:.2%}"),
            ("loss", f"{result['loss']:.4f}"),
        )
        click.echo("\n".join(f"{name:>10}  {value}" for name, value in rows))
