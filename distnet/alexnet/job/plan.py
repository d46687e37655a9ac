"""What a configuration comes to: how many steps, of how many examples, with which optimizer. Every process of a job
works it out alike from the same configuration."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from distnet._private.suggestions import suggest
from distnet.alexnet.job.config import KERAS, LOCAL, TrainConfig
from distnet.data.shares import steps_of
from distnet.errors import ConfigError
from distnet.semantics import Semantics
from distnet.settings.grammar import as_text
from distnet.settings.job import JobSettings

if TYPE_CHECKING:
    from distnet.alexnet.recipes import Recipe
    from distnet.optimizers import Optimizer

__all__ = [
    "Plan",
    "cores",
    "make_optimizer",
    "make_plan",
    "recipe_of",
    "semantics_of",
    "server_arguments",
    "with_recipe",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a run.

    Attributes:
        batch_size: of one worker's step.
        steps: of all workers together.
        examples: of all workers together.
        epoch_examples: training images in one pass.
        effective_batch: examples that one update joins.
        updates: how many updates a shard will make.
        rate_rule: in words, how the learning rate was chosen.
        threads: of one worker.
    """

    batch_size: int
    steps: int
    examples: int
    epoch_examples: int
    effective_batch: int
    updates: int
    rate_rule: str
    threads: int

    def steps_of(self, rank: int, workers: int) -> int:
        """Return the steps of one rank."""
        return steps_of(self.steps, rank, workers)


def make_plan(config: TrainConfig, train_examples: int) -> Plan:
    """Work out what a configuration comes to with that many training images.

    Raises:
        ConfigError: fewer steps than workers, or a batch larger than a worker's share of the images.
    """
    recipe = recipe_of(config)
    batch_size = config.batch_size or recipe.batch_size
    epochs = config.epochs if config.epochs is not None else recipe.epochs
    steps = config.steps or max(1, round(epochs * train_examples / batch_size))
    if steps < config.workers:
        raise ConfigError(f"{steps} steps cannot be shared by {config.workers} workers; give at least one step each")
    if batch_size * config.workers > train_examples:
        raise ConfigError(
            f"{config.workers} workers with batches of {batch_size} need {batch_size * config.workers} images, "
            f"but there are {train_examples}"
        )
    joined = config.workers if config.semantics != LOCAL and config.semantics_value().joins == "all" else 1
    if config.trainer == KERAS and joined > 1:
        steps -= steps % joined  # a fit in rounds has equally many steps on all workers
    effective_batch = joined * batch_size
    optimizer = _optimizer(config, recipe, steps * batch_size, effective_batch)
    as_the_recipe = optimizer == _optimizer(TrainConfig(), recipe, steps * batch_size, effective_batch)
    rule = recipe.rate_rule(effective_batch=effective_batch) if as_the_recipe else as_text(optimizer.learning_rate)
    return Plan(
        batch_size=batch_size,
        steps=steps,
        examples=steps * batch_size,
        epoch_examples=train_examples,
        effective_batch=effective_batch,
        updates=-(-steps // joined),
        rate_rule=rule,
        threads=config.threads_per_worker or max(1, cores() // config.workers),
    )


def make_optimizer(config: TrainConfig, plan: Plan) -> Optimizer:
    """Return the optimizer: what was given of it, of its learning rate and schedule, and the rest as the recipe has."""
    return _optimizer(config, recipe_of(config), plan.examples, plan.effective_batch)


def _optimizer(config: TrainConfig, recipe: Recipe, examples: int, effective_batch: int) -> Optimizer:
    return config.optimizer_from(
        recipe.constant_optimizer(effective_batch=effective_batch),
        lambda peak: recipe.schedule_from(peak, examples=examples, effective_batch=effective_batch),
    )


def semantics_of(config: TrainConfig) -> Semantics:
    """Return the semantics of a configuration, whose rounds wait as long as its timeout, or longer."""
    semantics = config.semantics_value()
    return dataclasses.replace(semantics, round_timeout=max(semantics.round_timeout, config.timeout))


def server_arguments(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    """Return the keyword arguments of the ``ParameterServer`` of a training, all but the parameters."""
    return {**with_recipe(config, plan).server_arguments(), "semantics": semantics_of(config)}


def with_recipe(config: TrainConfig, plan: Plan) -> JobSettings:
    """Return the settings of a training's servers, with the optimizer, schedule and EMA that its recipe brought."""
    names = [field.name for field in dataclasses.fields(JobSettings)]
    made = {
        **dict.fromkeys(("learning_rate", "schedule", "clip_norm", "clip_value")),
        "optimizer": as_text(_served(config, make_optimizer(config, plan))),
        "ema_decay": recipe_of(config).ema_decay,
        "address": config.address or ("tcp://127.0.0.1:0" if config.transport == "tcp" else "shm://"),
    }
    return JobSettings(**{name: getattr(config, name) for name in names} | made)


def _served(config: TrainConfig, optimizer: Optimizer) -> Optimizer:
    """Return the optimizer as the servers have it.

    For Keras that is its dialect, at the schedule's largest rate: each push brings the rate of its moment, and the
    workers clip gradients themselves.

    Raises:
        ConfigError: the trainer's framework has none that is the same.
    """
    from distnet.optimizers import SGD, Momentum

    if config.trainer != KERAS:
        return optimizer
    plain = dataclasses.replace(optimizer, clip_norm=None, clip_value=None)
    if isinstance(plain, Momentum):
        known: Optimizer = Momentum(plain.learning_rate, plain.momentum, nesterov=plain.nesterov)
    else:
        known = SGD(plain.learning_rate)
    if plain != known:
        raise ConfigError(
            f"the trainer 'keras' takes sgd, and momentum with nesterov, and no other setting of them; got "
            f"{as_text(plain)}"
        )
    rate = plain.to_spec()["schedule"]["learning_rate"]
    served = dataclasses.replace(plain, learning_rate=rate)
    return dataclasses.replace(served, velocity_holds_rate=True) if isinstance(served, Momentum) else served


def recipe_of(config: TrainConfig) -> Recipe:
    """Return the recipe that a configuration names, with the EMA's decay that was given.

    Raises:
        ConfigError: there is none of that name.
    """
    recipes = importlib.import_module("distnet.alexnet.recipes").RECIPES
    if config.recipe not in recipes:
        raise ConfigError(f"no recipe is named {config.recipe!r}{suggest(config.recipe, recipes)}")
    recipe: Recipe = recipes[config.recipe]
    return recipe if config.ema_decay is None else dataclasses.replace(recipe, ema_decay=config.ema_decay)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
