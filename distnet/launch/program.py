"""Which program a command line's script, module or program is: found before anything is started for it."""

from __future__ import annotations

import difflib
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from distnet.errors import ConfigError

__all__ = ["program_of"]


def program_of(script: Sequence[str]) -> list[str]:
    """Return the program and the arguments that a script, a module or a program is started with.

    Raises:
        ConfigError: there is none such.
    """
    if script[0] == "-m":
        if len(script) == 1:
            raise ConfigError("-m names no module; write -m MODULE and its arguments")
        if not _may_be_module(script[1]):
            raise ConfigError(f"there is no module {script[1]} in {Path.cwd()} or among those installed")
        return [sys.executable, *script]
    path = Path(script[0])
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"there is no script {path}{_near(path)}")
        return [sys.executable, *script]
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a script in it")
    if shutil.which(script[0]) is None:
        if path.is_file():
            raise ConfigError(
                f"{path} is neither a Python script, whose name ends in .py, nor a program that can be run{_near(path)}"
            )
        raise ConfigError(f"there is no script and no program {path}{_near(path)}")
    return list(script)


def _may_be_module(name: str) -> bool:
    """Return whether Python would find the first part of a module's name, from this folder; nothing is imported."""
    first = name.partition(".")[0]
    try:
        found = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return True  # for Python to say
    return found is not None or PathFinder.find_spec(first, [str(Path.cwd())]) is not None


def _near(path: Path) -> str:
    """Return what script in its folder a path may have been meant to name."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == ".py")
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""
