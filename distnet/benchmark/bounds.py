"""What bounds an exchange: which share of its time is which work, and what to try about the largest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["Explanation", "explain"]

UPDATE, COPYING, WAKING, SOCKETS, PYTHON = "the update", "copying", "waking", "the sockets", "Python"
WAITING = "waiting"  # what none of the others explains

_ADVICE = {
    ("shm", UPDATE): (
        "the optimizer's pass over memory, which no server can avoid; two servers (servers=2) step half of it each"
    ),
    ("shm", COPYING): (
        "memory: the gradient is copied in and the parameters out; alias=True reads parameters without a copy, and "
        "begin_push_pull copies while the next gradient is computed"
    ),
    ("shm", WAKING): (
        "that the other process must be woken: exchange less often (larger batches), or give worker and server a core "
        "each"
    ),
    ("shm", PYTHON): "Python's part of a call: pass lists rather than dicts, and fewer and larger tensors",
    ("tcp", UPDATE): (
        "the optimizer's pass over memory, which no server can avoid; two servers (servers=2) step half of it each"
    ),
    ("tcp", SOCKETS): (
        "the system's sockets, which any exchange of these bytes over TCP pays; use shared memory within a host, and "
        "begin_push_pull to compute the next gradient meanwhile"
    ),
    ("tcp", PYTHON): "Python's part of a call: pass lists rather than dicts, and fewer and larger tensors",
}
_WAITING_ADVICE = (
    "none of these but waiting, for a core or for the other process; give worker and server a core each, run fewer "
    "workers, or measure again when the machine is quiet"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where an exchange's time goes.

    Attributes:
        shares: of the whole time, by kind of work, as each takes by itself; their sum is above 1 where worker and
            server work at once, and below it by what none of them explains.
        bound: the largest; ``"waiting"`` where more is unexplained than any of them.
        advice: what that is, and what to try.
    """

    shares: Mapping[str, float]
    bound: str
    advice: str

    @property
    def in_words(self) -> str:
        """The explanation as two sentences."""
        ordered = sorted(self.shares.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{_per_cent(share)} {name}" for name, share in ordered)
        return f"Of its time: {parts}; {self._rest}. What bounds it: {self.advice}."

    @property
    def _rest(self) -> str:
        total = sum(self.shares.values())
        if total > 1.05:
            return "together more than all of it, because worker and server work at once"
        if total > 0.95:
            return "that is all of it"
        return f"the other {_per_cent(1 - total)} is caches changing hands, waiting, and whatever else runs here"


def explain(
    transport: str, seconds: float, *, copy_s: float, update_s: float, sockets_s: float, small_s: float, python_s: float
) -> Explanation:
    """Explain one exchange.

    Args:
        transport: ``"shm"`` or ``"tcp"``.
        seconds: what it takes.
        copy_s: what copying the model's bytes once takes.
        update_s: what stepping its parameters in place takes.
        sockets_s: what a bare exchange of the same bytes over TCP takes; anything for shared memory.
        small_s: what an exchange of next to nothing takes: waking there and back, and Python.
        python_s: what Python's part of a call takes.
    """
    parts = {UPDATE: update_s}
    if transport == "shm":
        parts |= {COPYING: 2 * copy_s, WAKING: max(0.0, small_s - python_s)}
    else:
        parts |= {SOCKETS: sockets_s}
    parts |= {PYTHON: python_s}
    shares = {name: part_s / seconds for name, part_s in parts.items()}
    bound = max(shares, key=lambda name: shares[name])
    if 1 - sum(shares.values()) > shares[bound]:
        return Explanation(shares=shares, bound=WAITING, advice=_WAITING_ADVICE)
    return Explanation(shares=shares, bound=bound, advice=_ADVICE[transport, bound])


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"
