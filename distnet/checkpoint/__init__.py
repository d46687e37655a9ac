"""Checkpoints: a server's whole state in a file by itself, which others can read, too (the safetensors layout).

::

    server = distnet.ParameterServer(parameters, checkpoint="checkpoints", checkpoint_every="10min")
    ...
    server = distnet.ParameterServer(restore="checkpoints")         # goes on from the latest
    checkpoint = distnet.checkpoint.load("checkpoints")             # a value, with all of it
    distnet.checkpoint.load_into_keras("checkpoints", model)        # into a model that is evaluated

docs/reference/checkpoints.md describes the file. Reading and writing need NumPy alone.
"""

from distnet.checkpoint.arguments import Difference
from distnet.checkpoint.contents import Checkpoint
from distnet.checkpoint.every import Every, parse_every
from distnet.checkpoint.folder import CheckpointFolder, load
from distnet.checkpoint.frameworks import load_into_keras, torch_state_dict
from distnet.checkpoint.restoring import Restored

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "Difference",
    "Every",
    "Restored",
    "load",
    "load_into_keras",
    "parse_every",
    "torch_state_dict",
]
