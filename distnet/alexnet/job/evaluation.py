"""The launcher's side of the evaluator: which parameters are to be scored, when, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distnet._private import launcher_env
from distnet._private.spawn import python_command
from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.folder import RunFolder
from distnet.launch.children import Child, Children

__all__ = ["Evaluation"]


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

    def request(self, path: str, *, examples: int, seconds: float) -> None:
        """Have the parameters at ``path`` scored: those of so many examples, after so many seconds of training.

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
