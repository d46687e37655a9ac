"""What a configuration comes to: how many steps, of how many examples, with which optimizer. Every process of a job
works it out alike from the same configuration."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING

from distnet.errors import ConfigError
from distnet.launch.config import LOCAL, TrainConfig
from distnet.semantics import SEMANTICS, Semantics
from distnet.suggestions import suggest
from distnet.worker import steps_of

if TYPE_CHECKING:
    from distnet.examples.recipes import Recipe
    from distnet.optimizers import Optimizer

__all__ = ["Plan", "cores", "make_plan", "recipe_of", "semantics_of"]


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
    joined = config.workers if config.semantics != LOCAL and SEMANTICS[config.semantics].joins == "all" else 1
    effective_batch = joined * batch_size
    rule = f"constant {config.learning_rate}" if config.optimizer else recipe.rate_rule(effective_batch=effective_batch)
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
    """Return the server's optimizer: the one that was named, or the recipe's."""
    from distnet.optimizers import OPTIMIZERS

    if config.optimizer is None:
        return recipe_of(config).optimizer(examples=plan.examples, effective_batch=plan.effective_batch)
    if config.learning_rate is None:
        raise ConfigError(f"optimizer {config.optimizer!r} needs a learning rate; give one with --learning_rate")
    return OPTIMIZERS[config.optimizer](config.learning_rate)


def semantics_of(config: TrainConfig) -> Semantics:
    """Return the semantics that a configuration names, whose rounds wait as long as its timeout, or longer."""
    named = SEMANTICS[config.semantics]
    return dataclasses.replace(named, round_timeout=max(named.round_timeout, config.timeout))


def recipe_of(config: TrainConfig) -> Recipe:
    """Return the recipe that a configuration names.

    Raises:
        ConfigError: there is none of that name.
    """
    recipes = importlib.import_module("distnet.examples.recipes").RECIPES
    if config.recipe not in recipes:
        raise ConfigError(f"no recipe is named {config.recipe!r}{suggest(config.recipe, recipes)}")
    recipe: Recipe = recipes[config.recipe]
    return recipe


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
