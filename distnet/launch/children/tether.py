"""Ties a program to the life of the process that started it, then becomes that program.

Run by its path, before anything of DistNet is imported: ``python tether.py PARENT_PID PROGRAM ARGUMENT…``. Linux ends
the program when its parent ends, however that happens; elsewhere the program simply runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the parent-death signal and replace this process by the program named on the command line."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the signal was asked for
            sys.exit(1)
    # A launcher started in the background of a script ignores Ctrl-C, and would pass that on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.exit(f"cannot start {program[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
