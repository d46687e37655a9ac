"""Whether workers were started for the same job as their servers: ``distnet serve --recipe`` and ``distnet worker``.

Both ends work the job out from their own settings. A worker's place in its data rides on its pushes, and says what the
worker was started with; here the server's end compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.plan import make_plan
from distnet.alexnet.place import Place
from distnet.errors import ConfigError, DistNetError

if TYPE_CHECKING:
    from distnet.server import ParameterServer
    from distnet.stats import ServerStatistics

__all__ = ["Agreement", "disagreements"]


class Agreement:
    """Looks now and then at what workers say that they were started with, once for each worker.

    Args:
        server: what they push to.
        config: what it was started for.
        images: training images in one epoch.

    Thread safety: one thread.
    """

    def __init__(self, server: ParameterServer, config: TrainConfig, images: int) -> None:
        self._server, self._config, self._images = server, config, images
        self._seen: set[tuple[int, int]] = set()

    def look(self, stats: ServerStatistics) -> list[str]:
        """Return a line for each setting in which a worker that has pushed since the last look disagrees.

        Args:
            stats: the server's, as they are now.
        """
        workers = {(s.rank, s.incarnation) for s in stats.sessions if s.rank is not None and s.applied}
        new = workers - self._seen
        if not new:
            return []
        self._seen |= new
        try:
            saved = self._server.snapshot().saved
        except DistNetError:  # the job is ending; whatever ended it is said elsewhere
            return []
        places = {}
        for rank, _ in sorted(new):
            try:
                places[rank] = Place.from_bytes(saved.get(rank, b""))
            except ConfigError:
                continue  # no worker of ours
        return disagreements(self._config, self._images, places)


def disagreements(config: TrainConfig, images: int, places: Mapping[int, Place]) -> list[str]:
    """Return a line for each setting in which a worker, by its place, disagrees with the server's configuration."""
    plan = make_plan(config, images)
    lines = []
    for rank, place in places.items():
        settings = {
            "--workers": (place.workers, config.workers),
            "--semantics": (place.semantics or config.semantics, config.semantics),
            "--recipe": (place.recipe, config.recipe),
            "--batch-size": (place.batch_size, plan.batch_size),
            "--images": (place.images, images),
        }
        different = {option: values for option, values in settings.items() if values[0] != values[1]}
        expected = plan.steps_of(rank, config.workers) if rank < config.workers else 0
        if not different and place.steps != expected:
            epochs = place.steps * config.workers * place.batch_size / images
            different["--epochs"] = (f"{epochs:.3g}", f"{plan.examples / plan.epoch_examples:.3g}")
        lines += [
            f"worker {rank} was started for {option} {its}, this server for {option} {ours}: start both with the same"
            for option, (its, ours) in different.items()
        ]
    return lines
