"""Errors that are raised while a compiled step runs, of which XLA keeps only the text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["Failures"]

Raised = TypeVar("Raised", BaseException, "BaseException | None")


class Failures:
    """Keeps the newest error of a callback, so that it can be raised as what it is.

    XLA ends a step whose callback raises by an error of its own, ``jax.errors.JaxRuntimeError``, where the step is
    called or where somebody waits for its results. Within :meth:`told_as_they_are` the callback's error is raised
    instead.

    Thread safety: callbacks of one client come one at a time, from any thread; everything else is one thread's.
    """

    def __init__(self) -> None:
        self._kept: BaseException | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what the block raises, which is a callback; forget what an earlier one raised where it ends well."""
        try:
            yield
        except BaseException as error:  # also Ctrl-C
            self._kept = error
            raise
        self._kept = None

    @contextlib.contextmanager
    def told_as_they_are(self) -> Iterator[None]:
        """Raise the error of a callback in place of the one by which XLA ended the step."""
        try:
            yield
        except RuntimeError as error:
            cause = self.cause_of(error)
            if cause is error:
                raise
            raise cause from None

    def cause_of(self, error: Raised) -> Raised:
        """Return the error that is kept, and keep it no more, where ``error`` is XLA's for it; else ``error``."""
        if not isinstance(error, RuntimeError):  # that of XLA is one
            return error
        return self.take() or error

    def take(self) -> BaseException | None:
        """Return the error that is kept, and keep it no more."""
        kept, self._kept = self._kept, None
        return kept

    def check(self) -> None:
        """Raise the error that is kept, once; do nothing where there is none."""
        if (kept := self.take()) is not None:
            raise kept
