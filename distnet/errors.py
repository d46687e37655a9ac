"""The errors of DistNet, one class for each kind of fault; the native engine raises the same ones.

::

    DistNetError
    ├── ConfigError          (also a ValueError)
    │   └── CheckpointError
    ├── ManifestMismatch     (also a ValueError)
    ├── CollectiveMismatch   (also a ValueError)
    ├── TransportError       (also a ConnectionError)
    │   ├── ConnectError
    │   ├── PeerClosed
    │   ├── DeadlineExceeded (also a TimeoutError)
    │   └── Fenced
    ├── ProtocolError
    ├── RoundAborted
    ├── Interrupted
    ├── NonFiniteGradient    (also an ArithmeticError)
    └── Unauthorized         (also a PermissionError)

    DistNetWarning           (a UserWarning): something that goes on, and that a user should know of

A message says what was expected, what was seen, and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CollectiveMismatch",
    "ConfigError",
    "ConnectError",
    "DeadlineExceeded",
    "DistNetError",
    "DistNetWarning",
    "Fenced",
    "Interrupted",
    "ManifestMismatch",
    "NonFiniteGradient",
    "PeerClosed",
    "ProtocolError",
    "RoundAborted",
    "TransportError",
    "Unauthorized",
]


class DistNetError(Exception):
    """Base of every error that DistNet raises on purpose.

    Example:
        >>> try:
        ...     distnet.SGD(-1.0)
        ... except distnet.DistNetError as error:
        ...     print(f"{type(error).__name__}: {error}")
        ConfigError: SGD.learning_rate is -1.0; expected a schedule or a number of at least 0, finite
    """


class ConfigError(DistNetError, ValueError):
    """A setting makes no sense, or two settings contradict each other."""


class CheckpointError(ConfigError):
    """A checkpoint cannot be written there, or what is there is none that a server can go on from.

    The reasons are a folder without room or permission, or one that another server writes to; and a file that is no
    checkpoint, is cut short or damaged, or has a newer format.
    """


class ManifestMismatch(DistNetError, ValueError):
    """Arrays are not those of the server's model: another name, shape, dtype or number of tensors."""


class CollectiveMismatch(DistNetError, ValueError):
    """The ranks of a group called different operations at the same place, or one with other dtypes, shapes or roots.

    Every rank raises it with the same text, which says what two of them called. The group goes on.
    """


class TransportError(DistNetError, ConnectionError):
    """The way to a peer failed, or the peer had no room for another connection."""


class ConnectError(TransportError):
    """No connection could be made: nobody listens there, or a server's port is taken."""


class PeerClosed(TransportError):
    """The peer ended the connection, in order or by dying."""


class DeadlineExceeded(TransportError, TimeoutError):
    """The peer was silent for longer than the timeout, or what was waited for did not come in time."""


class Fenced(TransportError):
    """A newer session of this rank took over; this client never comes back by itself.

    A worker that was only slow may connect anew. It then replaces the session that replaced it.
    """


class ProtocolError(DistNetError):
    """The peer does not speak this version of the protocol, or broke its rules."""


class RoundAborted(DistNetError):
    """A synchronous round ended without this push, or ranks waited for each other at different places."""


class Interrupted(DistNetError):
    """The stop flag of a client or a group was set while a call of it waited: ``connect(stop=)`` says what it does."""


class NonFiniteGradient(DistNetError, ArithmeticError):
    """A gradient held NaN or infinity, and was refused.

    A client looks for such values before it sends, and the server looks again. :meth:`distnet.Client.push_pull` says
    what happens where only the server finds one.
    """


class Unauthorized(DistNetError, PermissionError):
    """The server does not serve this peer, such as one of another user."""


class DistNetWarning(UserWarning):
    """Something goes on that is probably not meant, such as two workers that push under one rank."""
