"""A worker's place in its data: the bytes that ride on its pushes, and come back to it when a job is resumed.

The order of a rank's examples and the seeds of their distortion follow from the job's seed, the rank and the number of
the step alone (:mod:`distnet.alexnet.images`), so that a step's number is all that a worker needs to go on. The other
fields say which data the number is a place in; a worker of other settings is refused by them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from distnet.errors import ConfigError

__all__ = ["Place", "steps_done"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where one rank is after a step.

    Attributes:
        step: its steps so far; the push that carries this is the one of that step.
        steps: its steps in all.
        workers: how many ranks share the images.
        batch_size: examples of one step.
        images: training images in one epoch.
        seed: the job's.
        recipe: the recipe's name.
        semantics: what the worker was told that the job is; ``""`` where it was told nothing.
    """

    step: int
    steps: int
    workers: int
    batch_size: int
    images: int
    seed: int
    recipe: str
    semantics: str = ""

    def to_bytes(self) -> bytes:
        """Return the place as ``Client.save_with`` takes it: less than 1 KiB of JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Place:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ConfigError: these bytes are something else, such as those of another script.
        """
        try:
            values = json.loads(data)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not _fits(values):
            raise ConfigError(
                "the checkpoint holds bytes that are not the place of an AlexNet worker; it was made by another script"
            )
        return cls(**values)


def steps_done(saved: bytes | None, now: Place) -> int:
    """Return how many of a rank's steps are done already: 0 in a new job, else what came back from its checkpoint.

    Args:
        saved: ``Client.saved``.
        now: the place at the beginning of the work, with this worker's settings.

    Raises:
        ConfigError: the checkpoint's worker had other settings, by which the same step has other examples.
    """
    if saved is None:
        return 0
    then = Place.from_bytes(saved)
    for name in ("workers", "batch_size", "images", "seed", "recipe"):
        was, given = getattr(then, name), getattr(now, name)
        if was != given:
            raise ConfigError(
                f"the checkpoint is of a job with {name} {was!r}, and this worker was started with {given!r}; "
                "start it with the same settings to go on"
            )
    return then.step


def _fits(values: Mapping[str, Any]) -> bool:
    fields = {field.name: field.type for field in dataclasses.fields(Place)}
    return set(values) == set(fields) and all(
        isinstance(values[name], str) if kind == "str" else type(values[name]) is int and 0 <= values[name] < 2**63
        for name, kind in fields.items()
    )
