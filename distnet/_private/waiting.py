"""How ``connect()`` waits for a server, or for rank 0's model: with words, and not for ever."""

from __future__ import annotations

import logging
import random
import time

from distnet._private.stop_flag import StopFlag
from distnet.errors import ConfigError, DeadlineExceeded, Fenced, Interrupted, TransportError

__all__ = ["Waiting"]

_FIRST_LINE_S = 2.0  # so much may pass before somebody wants to know
_LINES_GROW_BY = 3.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5  # between two attempts

_log = logging.getLogger("distnet")


class Waiting:
    """The wait of one ``connect()``, over all of its attempts.

    It says what it waits for after 2 s, and again at growing intervals, as a warning of the logger ``distnet``.

    Args:
        who: waits, such as ``"rank 1"``.
        where: the address, as it was given.
        seconds: after which no attempt is made any more, and one that waits is given up. 0: there is one attempt.
        no_model: what to do where the server has no model and this client brings none, though it is rank 0; None: it
            brings one, or is another rank.
        nobody_else: whether no other client can bring it, so that waiting is in vain.
        stop: ends the wait once it is set.

    Thread safety: one thread.
    """

    def __init__(
        self,
        who: str,
        where: str,
        seconds: float,
        *,
        no_model: str | None = None,
        nobody_else: bool = False,
        stop: StopFlag | None = None,
    ) -> None:
        self._who = who
        self._no_model, self._nobody_else = no_model, nobody_else
        self._seconds = seconds
        self._stop = stop
        self._begun_s = time.monotonic()
        self._next_line_s = _FIRST_LINE_S
        self._pause_s = _FIRST_PAUSE_S
        self._why = f"no answer from the server at {where} yet"
        self._kind: type[TransportError] = DeadlineExceeded  # of the error that the wait ends in
        self._told = self._model_comes = False  # by the server, in this attempt
        self._end: TransportError | None = None  # raised by look(), within an attempt
        self._in_vain = False

    def heard(self, why: str, model_comes: bool) -> None:
        """Hear from the server why it does not serve this client yet."""
        self._told, self._model_comes = True, model_comes
        if self._no_model is not None and "has no model yet" in why and not model_comes:
            server = why[: why.index("has no model yet")]
            why = f"{server}has no model, and {self._who} passes no parameters= to connect(): {self._no_model}"
            self._in_vain = self._nobody_else
        self._why, self._kind = why, DeadlineExceeded

    def look(self) -> None:
        """Say what is waited for, when it is time to; called several times a second.

        Raises:
            TransportError: the wait has lasted long enough, and no model is on its way.
            ConfigError: this client itself was to bring the model, and brings none.
            Interrupted: the stop flag was set.
        """
        if self._stop is not None and self._stop.is_set():
            raise Interrupted(f"the stop flag was set while {self._who} waited: {self._why}")
        if self._in_vain:
            raise ConfigError(self._why)
        waited_s = time.monotonic() - self._begun_s
        if 0 < self._seconds < waited_s and not self._model_comes:
            self._end = self._given_up(waited_s)
            raise self._end
        if waited_s >= self._next_line_s:
            self._next_line_s *= _LINES_GROW_BY
            limit = f" of at most {self._seconds:.0f} s" if self._seconds else ""
            _log.warning("%s waits (%.0f s%s): %s", self._who, waited_s, limit, self._why)

    def after(self, error: TransportError) -> None:
        """Pause before the next attempt, now that one has ended with `error`.

        Raises:
            TransportError: `error` itself where it cannot heal, or there is but one attempt; else one that says how
                long this client has waited, when that was long enough.
        """
        if self._end is not None:
            raise self._end  # which `error` is: it says all already
        if isinstance(error, Fenced) or self._seconds == 0:
            raise error
        if not (self._told and isinstance(error, DeadlineExceeded)):  # the server has said it better
            self._why, self._kind = str(error), type(error)
        self._told = self._model_comes = False
        waited_s = time.monotonic() - self._begun_s
        if waited_s >= self._seconds:
            raise self._given_up(waited_s) from None
        time.sleep(min(self._pause_s * random.uniform(0.5, 1.0), self._seconds - waited_s))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.look()

    def _given_up(self, waited_s: float) -> TransportError:
        return self._kind(f"{self._why}; {self._who} waited {waited_s:.0f} s, its connect_timeout")
