"""Which failure came first: a job that loses one process soon loses others, whose errors are not the cause."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Sequence
from typing import Literal

from distnet.errors import ConfigError, DistNetError
from distnet.launch.children import ChildDied, Ended, death_of, describe_status
from distnet.semantics import Semantics
from distnet.settings.job import DEFAULT_SEMANTICS, JobSettings

__all__ = [
    "Failure",
    "FailurePolicy",
    "Reaction",
    "UndecidedFailures",
    "check_loss",
    "failed_together",
    "failure_policy",
]

Reaction = Literal["stop", "continue"]
"""What the others do when a worker has failed and is not started again."""

_SETTLE_S = 2.0  # in which the cause of a failure that may follow another one shows
_NEWS_WITHIN_S = 0.5  # for which a failure's line waits for the lines of what happened before it
_LONGEST_WORDS = 200
_ERRORS_THAT_FOLLOW = re.compile(
    r"(\w+\.)*(PeerClosed|ConnectError|DeadlineExceeded|Departed|RoundAborted|Fenced"
    r"|BrokenPipeError|ConnectionResetError)\b"
)
_SIGNALS_OF_A_JOB = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """What happens when a worker fails.

    Attributes:
        max_restarts: how often a rank is started again, first after 1 s, then each time after twice as long.
        then: what the others do about a worker that is not started again.
        ends_rounds: whether its loss ends the rounds of the others, whatever they do.
    """

    max_restarts: int = 0
    then: Reaction = "stop"
    ends_rounds: bool = False


def failure_policy(semantics: Semantics, *, max_restarts: int, then: Reaction) -> FailurePolicy:
    """Return the policy that was asked for, beside a server of this semantics.

    Raises:
        ConfigError: restarts that could not help.
    """
    ends_rounds = semantics.joins == "all" and semantics.on_loss == "abort"
    if max_restarts and ends_rounds:
        raise ConfigError(
            "--max-restarts goes with --on-loss shrink or wait: under abort, a lost worker ends all rounds, and one "
            "that starts again finds none to join"
        )
    return FailurePolicy(max_restarts=max_restarts, then=then, ends_rounds=ends_rounds)


def check_loss(settings: JobSettings, *, launched: bool) -> None:
    """Refuse an ``on_loss`` that would not do what it says.

    Args:
        settings: of the job.
        launched: whether its workers are started beside its servers, by a launcher that starts no other.

    Raises:
        ConfigError: there are no rounds, or nobody brings a lost worker back.
    """
    if settings.on_loss is None:
        return
    if settings.semantics_value().joins == "one":
        raise ConfigError(
            f"--on-loss {settings.on_loss} is for rounds, which {settings.semantics or DEFAULT_SEMANTICS} has none of: "
            "each gradient is an update, and nobody waits for a lost worker; leave it out, or take --semantics sync"
        )
    alone = launched and not settings.restarts and settings.after_failure == "continue"
    if settings.on_loss == "wait" and alone:
        raise ConfigError(
            "--on-loss wait goes with --max-restarts N: else nobody starts a lost worker again, and the rounds would "
            "wait for ever; or take --on-loss shrink, to go on without it"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A worker's process that ended with an error or by a signal.

    Attributes:
        rank: the worker's.
        status: as ``subprocess`` has it.
        at_s: when it was noticed, on the monotonic clock.
        words: the last line of its standard error, or what it said otherwise of its end.
        silent: whether the launcher killed it, because the server had given it up.
        said: whether ``words`` are what the worker itself said it ends with.
        error: what ends a job that ends with this failure, where more is known than ``in_words`` says.
    """

    rank: int
    status: int
    at_s: float
    words: str
    silent: bool = False
    said: bool = False
    error: DistNetError | None = None

    @classmethod
    def of(cls, rank: int, event: Ended, *, silent: bool = False, said: DistNetError | None = None) -> Failure:
        """Return the failure that an end is.

        Args:
            rank: of the worker that ended.
            event: its end.
            silent: whether the launcher killed it, because the server had given it up.
            said: the error that the worker itself said it ends with.
        """
        known: DistNetError | None = said
        if said is None and event.child.log is not None and not silent:
            known = death_of(event)  # what it wrote was shown to nobody yet
        words = event.child.last_line if said is None else f"{type(said).__name__}: {said}"
        return cls(
            rank=rank,
            status=event.status,
            at_s=event.at_s,
            words=words,
            silent=silent,
            said=said is not None,
            error=known,
        )

    @property
    def may_follow_another(self) -> bool:
        """Whether this is how a worker ends when something else has failed, or when the whole job is told to stop."""
        if self.status < 0 and not self.said:
            return -self.status in _SIGNALS_OF_A_JOB
        told_to_stop = self.status - 128 in _SIGNALS_OF_A_JOB
        return told_to_stop or _ERRORS_THAT_FOLLOW.match(self.words) is not None

    @property
    def in_words(self) -> str:
        """What happened, such as ``"worker 1 ended with exit code 1 (ValueError: no more milk)"``."""
        if self.silent:
            return f"worker {self.rank} hung, and was killed: the server heard nothing from it for its timeout"
        said = self.words if len(self.words) <= _LONGEST_WORDS else self.words[:_LONGEST_WORDS] + "…"
        if self.said and self.status < 0:
            end = describe_status(self.status).partition(" (")[0]
            return f"worker {self.rank} failed ({said}); it {end} afterwards"
        reason = f" ({said})" if said and self.status > 0 else ""
        return f"worker {self.rank} {describe_status(self.status)}{reason}"

    def as_error(self, others: str) -> DistNetError:
        """Return the error that a job ends with because of this failure.

        Args:
            others: what becomes of the other workers, for the end of the message.
        """
        return self.error or ChildDied(f"{self.in_words}{others}")

    @property
    def order(self) -> tuple[bool, float]:
        """Sorts failures that were noticed together: the likely cause first."""
        return self.may_follow_another, self.at_s


class UndecidedFailures:
    """Failures about which nothing was done yet, because another one may have been their cause.

    Invariant: failures are decided about together and once, at the latest 2 s after the first of them; each waits at
    most 0.5 s for counters of the servers that are newer, whose news come before it.

    Thread safety: one thread.
    """

    def __init__(self) -> None:
        self._failures: list[Failure] = []

    def __bool__(self) -> bool:
        return bool(self._failures)

    def add(self, failure: Failure) -> None:
        """A worker has failed."""
        self._failures.append(failure)

    def take_decided(self, now_s: float, asked_s: float) -> list[Failure]:
        """Return all failures, the likely cause first, once it is clear which of them, or what else, was first.

        Args:
            now_s: on the monotonic clock, as all times here.
            asked_s: when the newest counters that were taken in were asked for.
        """
        if not self._failures:
            return []
        first_s = min(failure.at_s for failure in self._failures)
        news_are_told = asked_s > first_s or now_s - first_s >= _NEWS_WITHIN_S
        has_a_cause = any(not failure.may_follow_another for failure in self._failures)
        if not (news_are_told and (has_a_cause or now_s - first_s >= _SETTLE_S)):
            return []
        failures, self._failures = sorted(self._failures, key=lambda failure: failure.order), []
        return failures


def failed_together(failures: Sequence[str], workers: int) -> str:
    """Return what a job of so many workers says at its end where some failed and the others went on."""
    first, *others = failures
    if not others:
        return f"{first}; the other workers went on without it" if workers > 1 else first
    return f"{first}; {len(others)} more worker{'s' if len(others) > 1 else ''} failed after it"
