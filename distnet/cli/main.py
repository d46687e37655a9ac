"""The command line's entry: runs a command and turns whatever ends it into one message and an exit code.

Exit codes: 0 done · 1 something failed · 2 a setting or the usage is wrong · 130 Ctrl-C · 143 told to stop (SIGTERM).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from distnet._private.extras import missing_module_message
from distnet.cli.log_lines import log_lines
from distnet.errors import ConfigError, DistNetError
from distnet.launch.signals import StopRequested, stopping_on_signals

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what follows ``distnet``; None: this process's own.
    """
    try:
        import click

        from distnet.cli.commands import distnet
    except ModuleNotFoundError as error:
        return _fail(_explain(error), 2)
    try:
        with stopping_on_signals(), log_lines():
            result = distnet.main(
                args=None if arguments is None else list(arguments), prog_name="distnet", standalone_mode=False
            )
            return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as end:
        cause = end.__cause__ if isinstance(end, click.Abort) else end  # click wraps what interrupted a command
        return _fail(*(str(cause), cause.exit_code) if isinstance(cause, StopRequested) else ("stopped by Ctrl-C", 130))
    except ModuleNotFoundError as error:
        return _fail(_explain(error), 2)
    except ConfigError as error:
        return _fail(str(error), 2)
    except DistNetError as error:
        return _fail(f"{type(error).__name__}: {error}", 1)
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1


def _explain(error: ModuleNotFoundError) -> str:
    message = missing_module_message(error)
    if message is None:
        raise error
    return message


def _fail(message: str, code: int) -> int:
    print(f"distnet: {message}", file=sys.stderr)
    return code
