"""What the way of Keras's JAX backend has beside the contract of all backends: memory that steps lend."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("keras")

import jax

from distnet.errors import NonFiniteGradient
from distnet.jax.callbacks import Result, call_on_host, chosen_way
from distnet.jax.failures import Failures
from distnet.keras.attached import Attached, Options
from distnet.keras.routes.jax import LendingReplica


def test_replies_go_to_the_memory_that_a_step_lends_and_never_after_it() -> None:
    replica = LendingReplica({"kernel": np.zeros(2, np.float32), "bias": np.zeros(1, np.float32)})
    own = replica.tensors
    lent = [np.zeros(2, np.float32), np.zeros(1, np.float32)]
    with replica.lent(lent):
        assert isinstance(replica.out, dict)
        replica.out["kernel"][...] = 1.0
        assert replica.tensors[0] is lent[0]
    assert lent[0].tolist() == [1.0, 1.0]
    assert isinstance(replica.out, dict)
    replica.out["kernel"][...] = 2.0
    assert lent[0].tolist() == [1.0, 1.0], "the step's memory is another's by now"
    assert replica.tensors[0] is own[0]


def test_a_step_that_fails_has_its_memory_back_too() -> None:
    replica = LendingReplica([np.zeros(2, np.float32)])
    own = replica.tensors
    with pytest.raises(ZeroDivisionError), replica.lent([np.ones(2, np.float32)]):
        _ = 1 / 0
    assert replica.tensors[0] is own[0]


@pytest.mark.parametrize("marks_step", [True, False])
def test_a_step_of_a_caller_who_waits_for_its_results_is_not_marked(marks_step: bool) -> None:
    """JAX starts a marked one by a slower way."""
    calls = []

    def double(outputs: Sequence[Any], inputs: Sequence[Any]) -> None:
        calls.append(float(inputs[0][0]))
        outputs[0][...] = 2 * inputs[0]

    def step(values: Any) -> Any:
        return call_on_host(double, [values], [Result((2,))], failures=Failures(), say=False, marks_step=marks_step)

    assert bool(jax.make_jaxpr(step)(np.ones(2, np.float32)).effects) is (
        marks_step or chosen_way().name == "io_callback"
    )
    compiled = jax.jit(step)
    for number in (1.0, 2.0, 2.0):
        (doubled,) = compiled(np.full(2, number, np.float32))
        assert np.asarray(doubled).tolist() == [2 * number, 2 * number]
    assert calls == [1.0, 2.0, 2.0], "none is left out, and none is repeated"


def test_whoever_waits_for_steps_hears_once_what_ended_one() -> None:
    """JAX computes a step while the main thread is at the end of an epoch already."""
    options = Options(client=None, update="server", every=1, state="average", semantics=None, servers=None)
    attached: Any = Attached(None, options)
    attached.steps = SimpleNamespace(failure=None, count=0)

    def settle() -> None:
        attached.steps.failure = NonFiniteGradient("of a step that was under way")

    attached._route = SimpleNamespace(settle=settle)
    with pytest.raises(NonFiniteGradient, match="under way"):
        attached.pull()
    assert attached.steps.failure is None
    with pytest.raises(NonFiniteGradient, match="under way"):
        attached.finish()
