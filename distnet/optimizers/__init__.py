"""Optimizers that the servers apply, as frozen values.

The engine does the arithmetic (``csrc/optim``, one file an optimizer); these classes only describe it. Formulas,
defaults and order of operations are PyTorch's, so each agrees with ``torch.optim`` to float32 rounding. Where other
libraries write an optimizer differently, settings such as ``eps_inside_root`` choose their dialect. The first argument
is always the learning rate: a float, or a schedule by update count::

    distnet.Momentum(distnet.CosineDecay(0.1, updates=10_000), nesterov=True, weight_decay=1e-4)

Each of them takes ``clip_value`` and ``clip_norm``, too, which :class:`Optimizer` describes.

In the formulas, ``p`` is an element of the parameters and ``g`` of the gradient. The other letters are elements of
state vectors: float32, as long as the parameters, and 0 at the start unless the text says otherwise.
"""

from distnet.optimizers.adagrad import Adagrad
from distnet.optimizers.adam import Adam, AdamW, NAdam
from distnet.optimizers.gradient_descent import SGD, Momentum
from distnet.optimizers.group import Group
from distnet.optimizers.lion import Lion
from distnet.optimizers.optimizer import Optimizer
from distnet.optimizers.outer_nesterov import OuterNesterov
from distnet.optimizers.rmsprop import RMSProp
from distnet.optimizers.table import OPTIMIZERS, from_spec, state_meaning, state_names, state_vectors
from distnet.schedules import CosineDecay, ExponentialDecay, LearningRate, PiecewiseConstant, Schedule, Warmup

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineDecay",
    "ExponentialDecay",
    "Group",
    "Lion",
    "Momentum",
    "NAdam",
    "Optimizer",
    "OuterNesterov",
    "PiecewiseConstant",
    "RMSProp",
    "LearningRate",
    "Schedule",
    "Warmup",
    "from_spec",
    "state_meaning",
    "state_names",
    "state_vectors",
]
