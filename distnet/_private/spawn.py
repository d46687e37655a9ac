"""How a child runs a module of this package: with the interpreter and the import path of its parent.

``python -m`` would put the current folder first, where another copy of the package may lie, such as a source tree
without its native module. Standard library only.
"""

from __future__ import annotations

import json
import sys

__all__ = ["python_command"]

_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); module = sys.argv.pop(1); "
    "sys.argv[0] = module; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as ``python -m`` would, importing what this process imports."""
    return [sys.executable, "-c", _START, json.dumps([entry for entry in sys.path if entry]), module, *arguments]
