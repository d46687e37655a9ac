"""The errors of DistNet; the native engine raises the same ones under the same names.

::

    DistNetError
    ├── ConfigError          (also a ValueError)
    │   └── CheckpointError
    ├── ManifestMismatch     (also a ValueError)
    ├── TransportError       (also a ConnectionError)
    │   ├── ConnectError
    │   ├── PeerClosed
    │   ├── DeadlineExceeded (also a TimeoutError)
    │   └── Fenced
    ├── ProtocolError
    ├── RoundAborted
    ├── NonFiniteGradient    (also an ArithmeticError)
    └── Unauthorized         (also a PermissionError)

    DistNetWarning           (a UserWarning): something that goes on, and that a user should know of
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConnectError",
    "DeadlineExceeded",
    "DistNetError",
    "DistNetWarning",
    "Fenced",
    "ManifestMismatch",
    "NonFiniteGradient",
    "PeerClosed",
    "ProtocolError",
    "RoundAborted",
    "TransportError",
    "Unauthorized",
]


class DistNetError(Exception):
    """Base of everything DistNet raises on purpose."""


class ConfigError(DistNetError, ValueError):
    """A setting that makes no sense, or two that contradict each other."""


class CheckpointError(ConfigError):
    """A checkpoint cannot be written there, or what is there is none that can be gone on from.

    A folder without room or permission; a file that is no checkpoint, is cut short, damaged, or of a newer format.
    """


class ManifestMismatch(DistNetError, ValueError):
    """Arrays that are not those of the server's model: another name, shape, dtype or number of tensors."""


class TransportError(DistNetError, ConnectionError):
    """The way to a peer failed."""


class ConnectError(TransportError):
    """No connection could be made: nobody listens there, or a port is taken."""


class PeerClosed(TransportError):
    """The other side ended the connection, in order or by dying."""


class DeadlineExceeded(TransportError, TimeoutError):
    """The other side was silent for longer than the timeout."""


class Fenced(TransportError):
    """A newer session of this rank took over; this client never comes back by itself.

    A worker that was only slow may connect anew. It then replaces the session that replaced it.
    """


class ProtocolError(DistNetError):
    """The other side does not speak this version of the protocol, or broke its rules."""


class RoundAborted(DistNetError):
    """A synchronous round ended without this push, or ranks waited for each other at different places."""


class NonFiniteGradient(DistNetError, ArithmeticError):
    """A gradient held NaN or infinity and was not sent."""


class Unauthorized(DistNetError, PermissionError):
    """The server does not serve this peer."""


class DistNetWarning(UserWarning):
    """Something that goes on and is probably not meant, such as two workers that push under one rank."""
