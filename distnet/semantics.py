"""The five semantics: one server with four small settings.

Those of :data:`SEMANTICS` are frozen values; ``dataclasses.replace`` makes others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from distnet._private.bounds import MOST_IN_FLIGHT, MOST_SERVERS, check_seconds, check_whole
from distnet._private.suggestions import suggest
from distnet.errors import ConfigError

__all__ = ["SEMANTICS", "Semantics", "resolve_semantics"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Semantics:
    """When a server replies to a push, and how it guards its parameters.

    A round is the gradients that one synchronous update joins, one of each member. Combinations without a name are
    allowed, except a round that is replied to before its update.

    Args:
        joins: ``"one"``: every push is an update; ``"all"``: an update joins one push of every member of the round.
        replies: ``"after-apply"``: the reply holds the worker's own push; ``"before-apply"``: it holds all of
            the worker's pushes but the newest.
        guard: ``"mutex"``: a reply is one version of the shard; ``"lock-free"``: no pusher and no reader takes a lock,
            and a reply may mix versions (never within a float).
        minimum_servers: the fewest shards this semantics makes sense with, at least 1.
        reduction: ``"mean"`` or ``"sum"`` of a round's gradients, in rank order.
        max_inflight: pushes of one session that may be accepted and not yet applied, 1 to 16; more wait.
        on_loss: what a round does about a member that died (one that finished always leaves): ``"shrink"`` (go on
            without it), ``"wait"`` (for its rank to come back) or ``"abort"`` (every later push gets
            :class:`~distnet.RoundAborted`).
        round_timeout: seconds that a round waits, from its first push, for a live but stuck worker before ``on_loss``
            is applied to it: half an hour, which a validation on rank 0 may well take.

    Raises:
        ConfigError: a value that is none of those, or a round that is replied to before its update.

    Thread safety: it never changes.

    Example:
        >>> import dataclasses
        >>> patient = dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="wait")
        >>> print(patient)
        sync with on_loss='wait'

    Source: Li et al., "Scaling Distributed Machine Learning with the Parameter Server", OSDI 2014, for servers that
    hold shards; Recht et al., "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent", NIPS 2011,
    and Chilimbi et al., "Project Adam: Building an Efficient and Scalable Deep Learning Training System", OSDI 2014,
    for updates without locks. Those of Hogwild! may overwrite each other.
    """

    joins: Literal["one", "all"] = "one"
    replies: Literal["after-apply", "before-apply"] = "after-apply"
    guard: Literal["mutex", "lock-free"] = "mutex"
    minimum_servers: int = 1
    reduction: Literal["mean", "sum"] = "mean"
    max_inflight: int = 2
    on_loss: Literal["shrink", "wait", "abort"] = "shrink"
    round_timeout: float = 1800.0

    def __post_init__(self) -> None:
        choices = {
            "joins": ("one", "all"),
            "replies": ("after-apply", "before-apply"),
            "guard": ("mutex", "lock-free"),
            "reduction": ("mean", "sum"),
            "on_loss": ("shrink", "wait", "abort"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ConfigError(
                    f"Semantics.{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}"
                )
        if self.joins == "all" and self.replies == "before-apply":
            raise ConfigError("a round is replied to after its update: use replies='after-apply' with joins='all'")
        check_whole("Semantics.max_inflight", self.max_inflight, 1, MOST_IN_FLIGHT)
        check_whole("Semantics.minimum_servers", self.minimum_servers, 1, MOST_SERVERS)
        check_seconds("Semantics.round_timeout", self.round_timeout, above_zero=True)

    def __str__(self) -> str:
        """Return the name, with what is not as that has it, such as ``sync with on_loss='wait'``."""
        kind = ("joins", "replies", "guard", "minimum_servers")
        for name, known in SEMANTICS.items():
            if all(getattr(known, field) == getattr(self, field) for field in kind):
                names = [field.name for field in dataclasses.fields(self)]
                others = [f"{f}={getattr(self, f)!r}" for f in names if getattr(self, f) != getattr(known, f)]
                return f"{name} with {', '.join(others)}" if others else name
        return repr(self)


SEMANTICS: Mapping[str, Semantics] = MappingProxyType(
    {
        "sync": Semantics(joins="all"),
        "async-apply": Semantics(),
        "async-locked": Semantics(replies="before-apply"),
        "async-lockfree": Semantics(replies="before-apply", guard="lock-free"),
        "async-sharded": Semantics(replies="before-apply", guard="lock-free", minimum_servers=2),
    }
)


def resolve_semantics(semantics: str | Semantics) -> Semantics:
    """Return the named semantics, or the value itself.

    Args:
        semantics: a name of :data:`SEMANTICS`, or a value.

    Returns:
        The value.

    Raises:
        ConfigError: no semantics has this name; the message has the nearest one, or all of them.

    Example:
        >>> distnet.semantics.resolve_semantics("async-apply").replies
        'after-apply'
    """
    if isinstance(semantics, Semantics):
        return semantics
    name: object = semantics
    if not isinstance(name, str) or name not in SEMANTICS:
        raise ConfigError(f"no semantics is named {name!r}{suggest(str(name), SEMANTICS)}")
    return SEMANTICS[name]
