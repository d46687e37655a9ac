"""A user's own script as the workers of a job: what ``distnet run`` does."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from distnet._private import launcher_env
from distnet._private.launcher_env import Launched, Master
from distnet.errors import DistNetError
from distnet.launch.children import Child, Children, Line
from distnet.launch.failures import FailurePolicy
from distnet.launch.imported import frameworks_of, names_any
from distnet.launch.job import Job, Servers
from distnet.launch.output.chatter import is_chatter
from distnet.launch.output.console import ProcessOutput
from distnet.launch.output.lines import Piece
from distnet.launch.program import program_of
from distnet.launch.reserved_port import ReservedPort
from distnet.launch.watching.feed import Feed
from distnet.stats import ServerStatistics

__all__ = ["ScriptJob", "run_script"]

_WAYS_TO_CONNECT = frozenset({"distribute", "connect", "join", "DistributedOptimizer", "init_process_group"})
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
    started_s = time.monotonic()
    ranks = list(range(job.workers) if job.ranks is None else job.ranks)
    with contextlib.ExitStack() as stack:
        # Where copies run elsewhere, too, nobody here can choose a port of rank 0's host for all.
        port = stack.enter_context(ReservedPort()) if len(ranks) == job.workers else None
        workers = _Copies(job, output, ranks, None if port is None else port.master)
        children = stack.enter_context(Children(partial_after_s=_PARTIAL_AFTER_S))
        feed = stack.enter_context(Feed(servers.stats))
        running = Job(
            servers,
            workers,
            children,
            feed,
            expected=job.workers,
            ranks=ranks,
            policy=job.policy,
            say=output.note,
        )
        running.see_through(before_stopping=before_stopping)
        seconds = round(time.monotonic() - started_s, 3)
        return {"workers": job.workers, "seconds": seconds, **running.result()}


class _Copies:
    """The copies of a script: ``Workers`` of a job."""

    def __init__(self, job: ScriptJob, output: ProcessOutput, ranks: Sequence[int], master: Master | None) -> None:
        self._job, self._output = job, output
        self._local_ranks = {rank: place for place, rank in enumerate(ranks)}
        self._master = master
        self._program = program_of(job.script)
        self._filters_chatter = not job.framework_logs and not launcher_env.framework_logs_are_set()

    @property
    def remedy(self) -> str:
        """What to do where no copy connects."""
        script = self._job.script
        name = " ".join(script[:2]) if script[0] == "-m" else script[0]
        frameworks = frameworks_of(script, Path.cwd())
        if "keras" in frameworks:
            return (
                f"{name} imports Keras, whose fit() trains each copy by itself: call distnet.keras.distribute(model) "
                "before fit() on every rank"
            )
        if "torch" in frameworks:
            return (
                f"{name} imports PyTorch: let it make its optimizer a distnet.torch.DistributedOptimizer(optimizer, "
                'model), or call torch.distributed.init_process_group("distnet"), on every rank'
            )
        return (
            f"let {name} call client = distnet.connect(parameters=...) on every rank (address and rank come from "
            "`distnet run`) and push its gradients with client.push_pull(); for a Keras model, "
            "distnet.keras.distribute(model) does that"
        )

    @property
    def forgotten(self) -> str:
        """What a copy that failed before it connected never does; for Keras, whose ``fit`` needs nothing to run."""
        script = self._job.script
        if "keras" not in frameworks_of(script, Path.cwd()) or names_any(script, Path.cwd(), _WAYS_TO_CONNECT):
            return ""
        return (
            "the script imports Keras and never calls distnet.keras.distribute(model), without which each copy trains "
            "by itself"
        )

    def start(self, children: Children, launched: Launched) -> Child:
        """Start the copy of a rank."""
        environment = launcher_env.script_environment(
            launched,
            threads=self._job.threads,
            framework_logs=self._job.framework_logs,
            local_rank=self._local_ranks[launched.rank],
            local_size=len(self._local_ranks),
            master=self._master,
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
