"""A user's own script as the workers of a job: what ``distnet run`` does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distnet._private import launcher_env
from distnet._private.launcher_env import Launched
from distnet.errors import DistNetError
from distnet.launch.children import Child, Children, Line
from distnet.launch.failures import FailurePolicy
from distnet.launch.job import Job, Servers
from distnet.launch.output.chatter import is_chatter
from distnet.launch.output.console import ProcessOutput
from distnet.launch.output.lines import Piece
from distnet.launch.program import program_of
from distnet.launch.watching.feed import Feed
from distnet.stats import ServerStatistics

__all__ = ["ScriptJob", "run_script"]

_PARTIAL_AFTER_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptJob:
    """What to run.

    Attributes:
        script: a Python file and its arguments, ``-m`` with a module and its arguments, or any program; each copy is
            told its rank by the environment, where ``distnet.connect()`` finds it.
        workers: how many the server expects.
        ranks: those to start here; None: all.
        threads: of each copy's numeric libraries; None leaves it to them.
        policy: what happens when one fails.
        framework_logs: whether what TensorFlow says at every start is shown, too.
    """

    script: Sequence[str]
    workers: int
    ranks: Sequence[int] | None = None
    threads: int | None = None
    policy: FailurePolicy = dataclasses.field(default_factory=FailurePolicy)
    framework_logs: bool = False


def run_script(
    servers: Servers, job: ScriptJob, output: ProcessOutput, *, before_stopping: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Start the copies of a script, and see them through.

    Args:
        servers: started. Where they have no model, the script's rank 0 brings it.
        job: what to run.
        output: where the copies' output and the launcher's own lines appear.
        before_stopping: called before workers are stopped, for an error or a signal.

    Returns:
        ``workers``; ``seconds``; and what :meth:`Job.result` returns.

    Raises:
        ConfigError: there is no such script.
        DistNetError: as :meth:`Job.see_through` does.
    """
    workers = _Copies(job, output)
    started_s = time.monotonic()
    with Children(partial_after_s=_PARTIAL_AFTER_S) as children, Feed(servers.stats) as feed:
        running = Job(
            servers,
            workers,
            children,
            feed,
            expected=job.workers,
            ranks=range(job.workers) if job.ranks is None else job.ranks,
            policy=job.policy,
            say=output.note,
        )
        running.see_through(before_stopping=before_stopping)
        seconds = round(time.monotonic() - started_s, 3)
        return {"workers": job.workers, "seconds": seconds, **running.result()}


class _Copies:
    """The copies of a script: ``Workers`` of a job."""

    def __init__(self, job: ScriptJob, output: ProcessOutput) -> None:
        self._job, self._output = job, output
        self._program = program_of(job.script)
        self._filters_chatter = not job.framework_logs and not launcher_env.framework_logs_are_set()

    @property
    def remedy(self) -> str:
        """What to do where no copy connects."""
        script = self._job.script
        name = " ".join(script[:2]) if script[0] == "-m" else script[0]
        return (
            f"let {name} call client = distnet.connect(parameters=...) on every rank (address and rank come from "
            "`distnet run`) and push its gradients with client.push_pull(); for a Keras model, "
            "distnet.tensorflow.TensorFlowWorker does that"
        )

    def start(self, children: Children, launched: Launched) -> Child:
        """Start the copy of a rank."""
        environment = launcher_env.script_environment(
            launched, threads=self._job.threads, framework_logs=self._job.framework_logs
        )
        return children.start(f"worker {launched.rank}", self._program, environment=environment)

    def hear(self, line: Line) -> DistNetError | None:
        """Show a line; a script's errors are told by its last words."""
        self.hear_last(line)
        return None

    def hear_last(self, line: Line) -> None:
        """Show a line."""
        if self._filters_chatter and line.stream == "stderr" and is_chatter(line.text):
            return
        self._output.show(line.child.name, line.stream, Piece(line.text, line.whole))

    def take(self, stats: ServerStatistics) -> Iterable[str]:
        """Have nothing to add to what the watch says."""
        return ()

    def tick(self) -> None:
        """Show what had to wait."""
        self._output.tick()
