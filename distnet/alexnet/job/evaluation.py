"""The launcher's side of the evaluator: which parameters are to be scored, when, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distnet._private import launcher_env
from distnet._private.arrays import Array
from distnet._private.spawn import python_command
from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.folder import RunFolder
from distnet.alexnet.job.plan import Plan, recipe_of
from distnet.errors import DistNetError
from distnet.launch.children import Child, Children

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["Evaluation", "ScoringTimes", "scored_parameters"]

_FEWEST_TIMES, _MOST_TIMES = 6, 100


class ScoringTimes:
    """After how many examples parameters are scored while a run trains.

    Once an epoch, but more often in a run that would be scored less than six times, and less often in one that would be
    scored more than a hundred times. Its end counts as one of them, and is not told of here.

    Args:
        plan: of the run.
        done: examples that an earlier start of the run has done.
    """

    def __init__(self, plan: Plan, *, done: int = 0) -> None:
        epochs_apart = max(1, -(-plan.examples // (plan.epoch_examples * _MOST_TIMES)))
        apart = min(epochs_apart * plan.epoch_examples, plan.examples // _FEWEST_TIMES)
        self._apart, self._end = max(apart, plan.batch_size), plan.examples
        self._next = self._after(done)
        self.steps_apart = max(1, self._apart // plan.batch_size)

    def has_come(self, examples: int) -> bool:
        """Return whether parameters are to be scored after so many examples; then the next time is a later one."""
        if not self._next <= examples < self._end:
            return False
        self._next = self._after(examples)
        return True

    def _after(self, examples: int) -> int:
        return (examples // self._apart + 1) * self._apart


class Evaluation:
    """An evaluator process and its requests.

    Attributes:
        child: the process.
        data: what it said the data are; empty until it did.
        results: evaluations so far, in the order they came: ``examples``, ``seconds``, ``accuracy``, ``loss``.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, children: Children) -> None:
        self.data: dict[str, Any] = {}
        self.results: list[dict[str, Any]] = []
        self._folder = folder
        self._when = config.evaluate
        self._waiting: list[str] = []
        self._asked = 0
        self._known: set[int] = set()
        self.child: Child = children.start(
            "evaluator",
            python_command("distnet.alexnet.job.evaluator", str(folder.path / "config.toml")),
            environment=launcher_env.worker_environment(threads=None, scratch=folder.scratch),
            log=folder.log("evaluator"),
            stdin=True,
        )

    @property
    def wanted(self) -> bool:
        """Whether anything is to be scored at all."""
        return self._when != "never"

    @property
    def done(self) -> bool:
        """Whether everything asked for has been answered."""
        return len(self.results) == self._asked

    def score(self, parameters: Mapping[str, Array], *, examples: int, seconds: float) -> None:
        """Have parameters scored: those of so many examples, after so many seconds of training."""
        if self.wanted and examples not in self._known:
            path = self._folder.keep_to_score(parameters, examples=examples, seconds=seconds)
            self.request(str(path), examples=examples, seconds=seconds)

    def request(self, path: str, *, examples: int, seconds: float) -> None:
        """Have the parameters at ``path`` scored, as ``score`` does those it is given.

        Parameters of one number of examples are scored once.
        """
        if not self.wanted or examples in self._known:
            return
        self._known.add(examples)
        line = json.dumps({"path": path, "examples": examples, "seconds": round(seconds, 3)})
        if self._when == "after":
            self._waiting.append(line)
        else:
            self._ask(line)

    def training_ended(self) -> None:
        """Score what waited for the end of the training."""
        self._when = "during" if self.wanted else "never"
        while self._waiting:
            self._ask(self._waiting.pop(0))

    def remember(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Take in evaluations of an earlier start of this run."""
        for result in results:
            self.results.append(_worth_keeping(result))
            self._known.add(result["examples"])
            self._asked += 1

    def answered(self, record: dict[str, Any]) -> dict[str, Any]:
        """Take in an answer, whose parameters are not needed any more; returns what is worth keeping of it."""
        result = _worth_keeping(record)
        self.results.append(result)
        Path(record["path"]).unlink(missing_ok=True)
        return result

    def _ask(self, line: str) -> None:
        self._asked += 1
        self.child.send(line)


def _worth_keeping(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("examples", "seconds", "accuracy", "loss")}


def scored_parameters(server: ParameterServer, config: TrainConfig) -> Mapping[str, Array]:
    """Return what is scored of a server's state: the moving average, or the parameters where the recipe keeps none."""
    arrays = server.parameters(ema=bool(recipe_of(config).ema_decay))
    if not isinstance(arrays, dict):
        raise DistNetError(
            f"expected the server's parameters by name, as it was given them; got {type(arrays).__name__}"
        )
    return arrays
