"""A user's own script as workers beside servers: what ``distnet run`` does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distnet import launcher_env
from distnet.errors import ConfigError
from distnet.launch.children import Child, ChildDied, Children, Ended, describe_status

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["run_script"]

Show = Callable[[str, str, str], None]
"""Takes a child's name, ``"stdout"`` or ``"stderr"``, and a line."""


def run_script(
    server: ParameterServer, script: Sequence[str], *, workers: int, threads: int | None, show: Show
) -> dict[str, Any]:
    """Start ``workers`` copies of a script beside a started server and see them through.

    Args:
        server: started, with ``parameters=None``: the script's rank 0 brings the model.
        script: a Python file and its arguments, ``-m`` with a module and its arguments, or any program; each copy is
            told its rank by the environment, where ``distnet.connect()`` finds it.
        workers: how many copies.
        threads: of each copy's numeric libraries; None leaves it to them.
        show: where their output goes, line by line.

    Returns:
        The server's last ``stats()`` and how long it took.

    Raises:
        ConfigError: there is no such script.
        ChildDied: a copy failed; the others are stopped by then.
    """
    program = _program(script)
    started_s = time.monotonic()
    with Children() as children:
        for rank in range(workers):
            job = launcher_env.Launched(address=server.address, rank=rank, workers=workers, start=0)
            environment = launcher_env.script_environment(job, threads=threads)
            children.start(f"worker {rank}", program, environment=environment)
        while children.running:
            for event in children.wait(0.5):
                if isinstance(event, Ended):
                    _check(event)
                else:
                    show(event.child.name, event.stream, event.text)
    return {"workers": workers, "seconds": round(time.monotonic() - started_s, 3), "server": server.stats().as_dict()}


def _program(script: Sequence[str]) -> list[str]:
    if script[0] == "-m":
        if len(script) == 1:
            raise ConfigError("-m names no module; write -m MODULE and its arguments")
        return [sys.executable, *script]
    path = Path(script[0])
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"there is no script {path}")
        return [sys.executable, *script]
    return list(script)


def _check(event: Ended) -> None:
    if event.status != 0:
        child: Child = event.child
        raise ChildDied(f"{child.name} {describe_status(event.status)}; the other workers were stopped")
