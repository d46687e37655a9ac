"""Trainings by name: those that every run of the tests makes on each backend, and the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_cases.training import Training

__all__ = [
    *(
        "ADAM",
        "AVERAGED",
        "ASYNCHRONOUS",
        "BY_HALVES",
        "GRAPHS",
        "LOCAL",
        "MIXED",
        "MOMENTUM",
        "NARROW",
        "OPTIMIZERS",
        "WHOLE",
    ),
    *("MORE_ASYNCHRONOUS", "MORE_BY_HALVES", "MORE_GRAPHS", "MORE_LOCAL", "MORE_OPTIMIZERS", "MORE_WHOLE"),
    "OPTIMIZERS_IN_GRAPHS",
    "at_a_falling_rate",
]

Cases = Mapping[str, Training]

MOMENTUM: dict[str, Any] = {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}
ADAM: dict[str, Any] = {"learning_rate": 0.01}
AVERAGED: dict[str, Any] = {**MOMENTUM, "use_ema": True, "ema_momentum": 0.7}
SCALED: dict[str, Any] = {"initial_scale": 1024.0, "dynamic_growth_steps": 3}
XLA = {"jit_compile": True}
AT_HAND = {"run_eagerly": True}  # no graph to be traced: the server's part is the same


def at_a_falling_rate(name: str, settings: Mapping[str, Any], **more: Any) -> Training:
    """Return a training by an optimizer whose rate falls with every step: a velocity that holds it is another then."""
    first = 0.002 if name == "Lion" else 0.02
    falling = ["ExponentialDecay", {"initial_learning_rate": first, "decay_steps": 1, "decay_rate": 0.8}]
    return Training(optimizer=name, settings={"learning_rate": falling, **settings}, **more)


# ---- against one process with the whole batch ----------------------------------------------------------------------
WHOLE: Cases = {
    "plain": Training(epochs=2, validated=True),
    "accumulation": Training(optimizer="Adam", settings={**ADAM, "gradient_accumulation_steps": 3}, fits=2),
    "average": Training(settings=AVERAGED),
    "loss scale": Training(settings=MOMENTUM, scaled=SCALED),
    "rate as an object": at_a_falling_rate("SGD", {"momentum": 0.9}),
    "rate by batch": Training(settings=MOMENTUM, callbacks=["each batch"]),
    "excluded by name": Training(
        optimizer="AdamW", settings={**ADAM, "weight_decay": 2.0}, excluded={"var_names": ["bias"]}
    ),
    "own step": Training(model="own step", settings=MOMENTUM),
    "loop": Training(settings=MOMENTUM, drive="loop"),
}
MORE_WHOLE: Cases = {
    "compiled last": Training(optimizer="Adam", settings=ADAM, compiled_last=True),
    "fits": Training(settings=MOMENTUM, fits=2),
    "fixed loss scale": Training(settings={"learning_rate": 0.1, "loss_scale_factor": 64.0}),
    "rate by epoch": Training(settings=MOMENTUM, callbacks=["by epoch"], epochs=3, steps=4),
    "rate on plateau": Training(settings=MOMENTUM, callbacks=["on plateau"], epochs=3, steps=4),
    "rate as pieces": Training(
        settings={
            **MOMENTUM,
            "learning_rate": ["PiecewiseConstantDecay", {"boundaries": [2, 5], "values": [0.1, 0.02, 0.2]}],
        }
    ),
    "rate as a cosine after a warm-up": Training(
        settings={
            **MOMENTUM,
            "learning_rate": [
                "CosineDecay",
                {"initial_learning_rate": 0.02, "decay_steps": 6, "warmup_target": 0.2, "warmup_steps": 3},
            ],
        }
    ),
    "rate as a function": Training(settings={**MOMENTUM, "learning_rate": "own"}),
    "excluded by variable": Training(
        settings={**MOMENTUM, "weight_decay": 2.0}, excluded={"var_list": ["first/kernel", "last/bias"]}
    ),
    "frozen layer": Training(model="frozen", settings=MOMENTUM),
    "train_on_batch": Training(settings=MOMENTUM, drive="train_on_batch"),
}

# ---- of backends that have graphs ----------------------------------------------------------------------------------
GRAPHS: Cases = {
    "compiled by XLA": Training(settings=MOMENTUM, compiled=XLA, epochs=2),
    "steps in one execution": Training(settings=MOMENTUM, compiled={"steps_per_execution": 4}, epochs=2),
    "loop in a graph": Training(settings=MOMENTUM, drive="loop in a graph"),
    "XLA, accumulation": Training(settings={**MOMENTUM, "gradient_accumulation_steps": 4}, compiled=XLA),
    "XLA, skipped by all": Training(settings=MOMENTUM, compiled=XLA, scaled=SCALED, spoilt=[[0, 3], [1, 3]]),
    "all at once": at_a_falling_rate(
        "AdamW",
        {"weight_decay": 1.0, "gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.6},
        excluded={"var_names": ["bias"]},
        compiled={"steps_per_execution": 4},
        epochs=2,
    ),
}
MORE_GRAPHS: Cases = {
    "not compiled": Training(settings=MOMENTUM, compiled={"jit_compile": False}),
    "uneven steps in one execution": Training(settings=MOMENTUM, compiled={"steps_per_execution": 3}),
    "XLA, steps in one execution": Training(settings=MOMENTUM, compiled={**XLA, "steps_per_execution": 4}),
    "XLA, average": Training(settings=AVERAGED, compiled=XLA),
    "XLA, own step": Training(model="own step", settings=MOMENTUM, compiled=XLA),
    "XLA, rate by batch": Training(settings=MOMENTUM, callbacks=["each batch"], compiled=XLA),
    "XLA, rate as an object": at_a_falling_rate("SGD", {"momentum": 0.9}, compiled=XLA),
    "skipped by all": Training(settings=MOMENTUM, scaled=SCALED, spoilt=[[0, 3], [1, 3]]),
}

# ---- optimizers, each beside a rate that falls with every step -----------------------------------------------------
_Optimizers = Mapping[str, tuple[str, dict[str, Any]]]
_OPTIMIZERS: _Optimizers = {
    "Nesterov with decay": ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.5}),
    "Adam": ("Adam", {}),
    "AdamW with settings": ("AdamW", {"weight_decay": 0.5, "beta_1": 0.7, "amsgrad": True}),
    "centered with momentum": ("RMSprop", {"centered": True, "momentum": 0.8, "epsilon": 1e-3}),
    "Adagrad with settings": ("Adagrad", {"initial_accumulator_value": 0.5, "epsilon": 1e-3}),
    "Nadam with settings": ("Nadam", {"beta_1": 0.7, "beta_2": 0.9, "epsilon": 1e-3, "weight_decay": 0.5}),
    "Lion with settings": ("Lion", {"beta_1": 0.7, "beta_2": 0.8, "weight_decay": 0.5}),
}
_MORE_OPTIMIZERS: _Optimizers = {
    "SGD": ("SGD", {}),
    "SGD with decay": ("SGD", {"weight_decay": 0.5}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "Adam with settings": ("Adam", {"beta_1": 0.7, "beta_2": 0.9, "epsilon": 1e-3}),
    "Adam with decay": ("Adam", {"weight_decay": 0.5}),
    "amsgrad": ("Adam", {"amsgrad": True, "beta_2": 0.5}),
    "AdamW": ("AdamW", {}),
    "RMSprop": ("RMSprop", {}),
    "RMSprop with momentum": ("RMSprop", {"rho": 0.7, "momentum": 0.8, "epsilon": 1e-3}),
    "centered": ("RMSprop", {"centered": True, "epsilon": 1e-3}),
    "Adagrad": ("Adagrad", {}),
    "Nadam": ("Nadam", {}),
    "Lion": ("Lion", {}),
}
OPTIMIZERS: Cases = {name: at_a_falling_rate(*each, compiled=AT_HAND) for name, each in _OPTIMIZERS.items()}
MORE_OPTIMIZERS: Cases = {name: at_a_falling_rate(*each, compiled=AT_HAND) for name, each in _MORE_OPTIMIZERS.items()}
OPTIMIZERS_IN_GRAPHS: Cases = {name: at_a_falling_rate(*each) for name, each in _OPTIMIZERS.items()}

# ---- against an imitation ------------------------------------------------------------------------------------------
BY_HALVES: Cases = {
    "batch norm": Training(model="batch norm", settings=MOMENTUM, epochs=2, validated=True),
    "dropout": Training(model="dropout", settings=MOMENTUM),
    "global_clipnorm": Training(settings={**MOMENTUM, "global_clipnorm": 0.1}),
    "skipped by one": Training(scaled=SCALED, spoilt=[[1, 2]], settings=MOMENTUM),
}
MORE_BY_HALVES: Cases = {
    "rank 0's state": Training(model="batch norm", settings=MOMENTUM, distributed={"state": "rank0"}),
    "convolutional": Training(model="convolutional", settings=MOMENTUM),
    "clipnorm": Training(settings={**MOMENTUM, "clipnorm": 0.1}),
    "clipvalue": Training(settings={**MOMENTUM, "clipvalue": 0.02}),
}


def _local(optimizer: str, every: int, **more: Any) -> Training:
    settings = MOMENTUM if optimizer == "SGD" else ADAM
    distributed = {"update": "local", "every": every}
    return Training(optimizer=optimizer, settings=settings, distributed=distributed, **more)


LOCAL: Cases = {"Adam, every 3": _local("Adam", 3)}
MORE_LOCAL: Cases = {
    "SGD, every 1": _local("SGD", 1),
    "Adamax, every 3": _local("Adamax", 3),
    # Nothing but finish() adds what is left there.
    "train_on_batch": _local("SGD", 3, drive="train_on_batch", finished=True),
}

# ---- narrow floats: dtype or policy, and the tolerance --------------------------------------------------------------
MIXED: Mapping[str, tuple[Training, float]] = {
    "mixed_bfloat16": (Training(dtype="mixed_bfloat16"), 2.0**-8),
    "mixed_float16, a skipped step": (Training(dtype="mixed_float16", spoilt=[[0, 2], [1, 2]]), 2.0**-11),
}
NARROW: Mapping[str, tuple[str, float]] = {
    "float64": ("float64", 1e-6),
    "bfloat16": ("bfloat16", 2.0**-5),
    "float16": ("float16", 2.0**-8),
}

# ---- semantics and servers -----------------------------------------------------------------------------------------
ASYNCHRONOUS: Mapping[str, int] = {"async-apply": 1}
MORE_ASYNCHRONOUS: Mapping[str, int] = {"async-lockfree": 1, "async-sharded": 2}
