"""DistNet: data-parallel training with parameter servers.

::

    import distnet
    import numpy as np                            # both stand before every example of this reference

    server = distnet.ParameterServer(parameters, semantics="async-lockfree", optimizer=distnet.SGD(0.1), workers=2)
    with server:
        client = distnet.connect(server.address, rank=0)
        parameters = client.pull()
        parameters = client.push_pull(gradients)
        client.close()

``import distnet`` needs NumPy alone; a framework's worker lives in a module of its own, such as ``distnet.tensorflow``.
"""

import importlib.util

if importlib.util.find_spec("distnet._native") is None:
    raise ImportError(
        f"{__path__[0]} is DistNet's source, and its C++ core is not built there. Start Python in another folder to "
        "have the installed package, or install this one to work on it: pip install -e ."
    )

from distnet.client import Client, Handle, connect
from distnet.data import shard_indices, steps_of
from distnet.errors import (
    CheckpointError,
    CollectiveMismatch,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DistNetError,
    DistNetWarning,
    Fenced,
    Interrupted,
    ManifestMismatch,
    NonFiniteGradient,
    PeerClosed,
    ProtocolError,
    RoundAborted,
    TransportError,
    Unauthorized,
)
from distnet.formats import FORMATS
from distnet.optimizers import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    CosineDecay,
    ExponentialDecay,
    Group,
    Lion,
    Momentum,
    NAdam,
    Optimizer,
    OuterNesterov,
    PiecewiseConstant,
    RMSProp,
    Warmup,
)
from distnet.process_group import GroupCoordinator, ProcessGroup, Work
from distnet.semantics import SEMANTICS, Semantics
from distnet.server import ParameterServer
from distnet.snapshot import Snapshot
from distnet.stores import LockFreeStore, MutexStore
from distnet.tuning import Tuning

__version__ = "0.2.0"

__all__ = [
    "FORMATS",
    "Tuning",
    "OPTIMIZERS",
    "SEMANTICS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CheckpointError",
    "CollectiveMismatch",
    "Client",
    "ConfigError",
    "ConnectError",
    "CosineDecay",
    "DeadlineExceeded",
    "DistNetError",
    "DistNetWarning",
    "ExponentialDecay",
    "Fenced",
    "Group",
    "GroupCoordinator",
    "Handle",
    "Interrupted",
    "LockFreeStore",
    "ManifestMismatch",
    "Lion",
    "Momentum",
    "NAdam",
    "MutexStore",
    "NonFiniteGradient",
    "Optimizer",
    "OuterNesterov",
    "ParameterServer",
    "PeerClosed",
    "PiecewiseConstant",
    "ProcessGroup",
    "ProtocolError",
    "RMSProp",
    "RoundAborted",
    "Semantics",
    "Snapshot",
    "TransportError",
    "Unauthorized",
    "Warmup",
    "Work",
    "connect",
    "shard_indices",
    "steps_of",
]
