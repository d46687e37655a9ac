"""A training in progress: what its parts share, and the lines that it begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distnet.alexnet.job.config import LOCAL, TrainConfig
from distnet.alexnet.job.display import Display
from distnet.alexnet.job.evaluation import Evaluation
from distnet.alexnet.job.folder import RunFolder
from distnet.alexnet.job.interrupted import ResumePoint
from distnet.alexnet.job.plan import Plan, make_plan, with_recipe
from distnet.alexnet.job.processor import SLOW_BFLOAT16, multiplies_bfloat16
from distnet.alexnet.job.progress import JobProgress, WorkerProgress
from distnet.launch.children import Children
from distnet.launch.start_line import start_line

__all__ = ["Run", "begin", "go_on_from"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the parts of a training share.

    Attributes:
        config: what to do.
        plan: what that comes to.
        folder: the run's, open.
        children: its processes.
        evaluation: the evaluator, which has loaded the data.
        progress: how far it is.
        display: shows that.
    """

    config: TrainConfig
    plan: Plan
    folder: RunFolder
    children: Children
    evaluation: Evaluation
    progress: JobProgress
    display: Display


def begin(
    config: TrainConfig,
    folder: RunFolder,
    children: Children,
    evaluation: Evaluation,
    progress: JobProgress,
    display: Display,
) -> Run:
    """Return a run whose data are loaded, planned, and say what it will do."""
    data = evaluation.data
    plan = make_plan(config, data["train_examples"])
    progress.title = f"AlexNet on {data['name']}: {_people(config)}"
    progress.total_examples = plan.examples
    progress.workers = [WorkerProgress(rank) for rank in range(config.workers)]
    display.note(_title(config, plan, data))
    if config.semantics != LOCAL:
        display.note(start_line(with_recipe(config, plan), "train"))
    if config.precision == "bfloat16" and multiplies_bfloat16() is False:
        display.note(SLOW_BFLOAT16)
    return Run(
        config=config,
        plan=plan,
        folder=folder,
        children=children,
        evaluation=evaluation,
        progress=progress,
        display=display,
    )


def go_on_from(point: ResumePoint, run: Run) -> list[int]:
    """Take in what an interrupted start of this run did.

    Returns:
        At how many examples the run was resumed, this time and earlier.
    """
    progress, batch = run.progress, run.plan.batch_size
    progress.workers = [point.worker(rank, batch) for rank in range(run.config.workers)]
    progress.seconds_before = point.seconds()
    progress.accuracies = [(result["examples"], result["accuracy"]) for result in point.evaluations]
    done = progress.examples
    run.evaluation.remember(point.evaluations)
    for path, examples, seconds in run.folder.waiting_to_be_scored(at_most_examples=done):
        run.evaluation.request(str(path), examples=examples, seconds=seconds)
    steps = {str(worker.rank): worker.step for worker in progress.workers}
    name = None if point.checkpoint is None else point.checkpoint.name
    earlier = [record["examples"] for record in point.records if record["kind"] == "resumed"]
    told = {"checkpoint": name, "updates": point.updates, "examples": done, "steps": steps, "cut": point.cut}
    run.folder.record("resumed", told, step=point.updates)
    run.display.note(_resumed(point, done, run.plan))
    return [*earlier, done]


def _title(config: TrainConfig, plan: Plan, data: Mapping[str, Any]) -> str:
    epochs = plan.examples / plan.epoch_examples
    return (
        f"AlexNet on {data['name']} ({data['train_examples']:,} images): {_people(config)}, {plan.threads} "
        f"thread{'s' if plan.threads > 1 else ''} each, batch {plan.batch_size}, {plan.steps:,} steps = {epochs:.2f} "
        f"epochs, {plan.updates:,} updates of {plan.effective_batch} examples, learning rate: {plan.rate_rule}"
    )


def _resumed(point: ResumePoint, examples: int, plan: Plan) -> str:
    if point.checkpoint is None:
        return "there is no checkpoint yet: this run begins anew"
    cut = f"; {point.cut} later records of metrics.jsonl were cut" if point.cut else ""
    return (
        f"going on from {point.checkpoint}: {point.updates:,} updates and {examples:,} of {plan.examples:,} examples "
        f"are in it{cut}"
    )


def _people(config: TrainConfig) -> str:
    if config.semantics == LOCAL:
        return "one process without a server"
    return f"{config.semantics}, {config.workers} worker{'s' if config.workers > 1 else ''}"
