"""How one description of an operation becomes two methods: one that waits for its result, and one that begins it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from distnet import _native
from distnet._private.collective_arguments import bytes_of
from distnet._private.group_calls import Call, Calls, Result
from distnet.process_group.work import Work

__all__ = ["Operations", "begins", "operation"]

Given = ParamSpec("Given")


class Operations:
    """One member's end of the engine's group, and how an operation of it begins.

    Args:
        native: the engine's group.
        rank: this member's number in it.
        size: how many members it has.
        operation_timeout: seconds that an operation may take.
    """

    def __init__(self, native: _native.ProcessGroup, rank: int, size: int, operation_timeout: float) -> None:
        self._native = native
        self._calls = Calls(rank, size)
        self._operation_timeout = operation_timeout

    def _run(self, call: Call[Result]) -> Result:
        """Do an operation on this thread where its lane is idle, and return its result."""
        return self._start(call, inline=True).wait()

    def _start(self, call: Call[Result], *, inline: bool = False) -> Work[Result]:
        native = self._native.begin(
            call.kind,
            [bytes_of(array) for array in call.inputs],
            None if call.out is None else [bytes_of(call.out)],
            dtype=call.dtype,
            shape=call.shape,
            reduction=call.op,
            root=call.root,
            prescale=call.prescale,
            postscale=call.postscale,
            splits=call.splits,
            takes_any=call.takes_any,
            name=call.name,
            tag=call.tag,
            timeout=self._operation_timeout,
            inline=inline,
        )
        return Work(native, call)


def operation(describe: Callable[Concatenate[Any, Given], Call[Result]]) -> Callable[Concatenate[Any, Given], Result]:
    """Make the method that does what a method describes, and returns its result.

    Args:
        describe: a method of a class of :class:`Operations`: checks its arguments and returns them as a call.

    Returns:
        A method with its name, parameters and docstring.
    """

    @functools.wraps(describe)
    def run(self: Operations, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return self._run(describe(self, *args, **kwargs))

    _say_what_returns(run, _result_of(describe))
    return run


def begins(
    method: Callable[Concatenate[Any, Given], Result],
) -> Callable[Concatenate[Any, Given], Work[Result]]:
    """Make the method that only begins what another one does.

    Args:
        method: what :func:`operation` made.

    Returns:
        A method with the same parameters, whose name begins with ``begin_``.
    """
    describe: Callable[Concatenate[Any, Given], Call[Result]] = inspect.unwrap(method)

    @functools.wraps(describe)
    def begin(self: Operations, /, *args: Given.args, **kwargs: Given.kwargs) -> Work[Result]:
        return self._start(describe(self, *args, **kwargs))

    owner, _, name = describe.__qualname__.rpartition(".")
    begin.__name__ = f"begin_{name}"
    begin.__qualname__ = f"{owner}.begin_{name}"
    begin.__doc__ = _begun(describe)
    _say_what_returns(begin, f"Work[{_result_of(describe)}]")
    return begin


def _result_of(describe: Callable[..., Call[Any]]) -> str:
    """Return what type the result of an operation has, which stands in its description as ``Call[type]``."""
    annotation: str = describe.__annotations__["return"]
    return annotation.removeprefix("Call[").removesuffix("]")


def _say_what_returns(method: Callable[..., object], annotation: str) -> None:
    method.__annotations__ = {**method.__annotations__, "return": annotation}
    method.__signature__ = inspect.signature(method).replace(return_annotation=annotation)  # type: ignore[attr-defined]


def _begun(describe: Callable[..., Call[Any]]) -> str:
    """Return the docstring of the method that begins an operation."""
    name = describe.__name__
    article = "an" if name[0] in "aeiou" else "a"
    arguments = [
        f"    {argument}: as :meth:`{name}` takes it."
        for argument in inspect.signature(describe).parameters
        if argument != "self"
    ]
    return "\n".join(
        [
            f"Begin {article} :meth:`{name}`.",
            "",
            "Args:",
            *arguments,
            "",
            "Returns:",
            f"    The operation on its way, whose :meth:`Work.wait` returns what :meth:`{name}` does.",
            "",
            "Raises:",
            "    ConfigError: an argument makes no sense. Nothing was sent.",
        ]
    )
