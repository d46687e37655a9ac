"""Optimizers, schedules and groups as text: the way there and back, and what is said of text that is none."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import distnet
from distnet.errors import ConfigError
from distnet.optimizers import OPTIMIZERS
from distnet.settings.grammar import (
    as_text,
    parse_group,
    parse_optimizer,
    parse_schedule,
    parse_tuning,
)

quick = settings(max_examples=60, deadline=None)

numbers = st.floats(0.0, 1e12) | st.integers(0, 10**15)
positive = st.floats(1e-300, 1e12) | st.integers(1, 10**15)
counts = st.integers(0, 2**63 - 1)


@st.composite
def steps(draw: st.DrawFn) -> distnet.PiecewiseConstant:
    """Boundaries that rise, and one learning rate more."""
    boundaries = sorted(draw(st.sets(counts, max_size=4)))
    rates = draw(st.lists(numbers, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
    return distnet.PiecewiseConstant(boundaries, rates)


decays = (
    st.builds(distnet.CosineDecay, numbers, positive, numbers)
    | st.builds(distnet.ExponentialDecay, numbers, positive, positive, st.booleans())
    | steps()
)
rates = numbers | decays | st.builds(distnet.Warmup, counts, numbers | decays, numbers)


def some(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Optimizers of a kind, with any of their settings."""
    below_one = st.floats(0.0, 0.9999)
    special = {
        "learning_rate": rates,
        "clip_value": st.none() | positive,
        "clip_norm": st.none() | positive,
        "dampening": st.just(0.0),
        "alpha": below_one,
        "betas": st.tuples(below_one, below_one),
    }
    by_type = {"bool": st.booleans()}
    return st.builds(
        kind, **{f.name: special.get(f.name, by_type.get(str(f.type), numbers)) for f in dataclasses.fields(kind)}
    )


optimizers = st.one_of([some(kind) for kind in OPTIMIZERS.values()])


# ---- there and back ------------------------------------------------------------------------------------------------
@quick
@given(optimizers, st.booleans())
def test_an_optimizer_comes_back_from_its_text(optimizer: distnet.Optimizer, complete: bool) -> None:
    assert parse_optimizer(as_text(optimizer, complete=complete)) == optimizer


@quick
@given(rates, st.booleans())
def test_a_learning_rate_comes_back_from_its_text(rate: Any, complete: bool) -> None:
    assert parse_schedule(as_text(rate, complete=complete)) == rate


@quick
@given(
    st.text("abc.*?[]=/_-", min_size=1),
    st.builds(
        distnet.Group,
        numbers,
        st.none() | numbers,
        st.fixed_dictionaries(
            {}, optional={"momentum": numbers, "nesterov": st.booleans(), "betas": st.tuples(numbers, numbers)}
        ),
    ),
)
def test_a_group_comes_back_from_its_text(pattern: str, group: distnet.Group) -> None:
    assert parse_group(f"{pattern}={as_text(group)}") == (pattern, group)


@quick
@given(st.floats(0.0, 1e6), st.booleans(), st.sampled_from(["reno", "cubic", "bbr"]))
def test_tuning_comes_back_from_its_text(spin: float, duplex: bool, congestion_control: str) -> None:
    tuning = distnet.Tuning(spin=spin, duplex=duplex, congestion_control=congestion_control)
    assert parse_tuning(as_text(tuning)) == tuning


@pytest.mark.parametrize("parse", [parse_optimizer, parse_schedule, parse_group, parse_tuning])
@quick
@given(text=st.text(max_size=60) | st.text("momentusgdcos(),=[]+-*0123456789.e \n", max_size=60) | st.just("(" * 4000))
def test_any_other_text_is_a_clear_error(parse: Callable[[str], Any], text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text)


# ---- what the text says ----------------------------------------------------------------------------------------------
def test_settings_are_those_of_the_python_values() -> None:
    assert parse_optimizer("momentum(0.05, momentum=0.8, nesterov=true)") == distnet.Momentum(0.05, 0.8, True)
    assert parse_optimizer("adam") == distnet.Adam()
    assert parse_optimizer("sgd(cosine(0.1, updates=100, warmup=10), clip_norm=3)") == distnet.SGD(
        distnet.Warmup(10, distnet.CosineDecay(0.1, 100)), clip_norm=3
    )
    assert parse_optimizer("adamw(betas=(0.8, 0.9),\n  weight_decay=none)".replace("none", "0.1")) == distnet.AdamW(
        betas=(0.8, 0.9), weight_decay=0.1
    )


def test_a_schedule_goes_on_from_the_learning_rate_it_is_given() -> None:
    assert parse_schedule("constant", 0.1) == 0.1
    assert parse_schedule("constant(warmup=5)", 0.1) == distnet.Warmup(5, 0.1)
    assert parse_schedule("cosine(updates=100, final=0.01)", 0.1) == distnet.CosineDecay(0.1, 100, 0.01)
    assert parse_schedule("exponential(factor=0.1, updates=350, staircase=true)", 0.1) == distnet.ExponentialDecay(
        0.1, 0.1, 350, staircase=True
    )
    assert parse_schedule("piecewise(boundaries=[9], learning_rates=[0.2, 0.1])", 0.3) == distnet.PiecewiseConstant(
        [9], [0.2, 0.1]
    )


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_optimizer, "adm", "no optimizer is named 'adm'; did you mean 'adam'?"),
        (
            parse_optimizer,
            "momentum(0.05, momentom=0.9)",
            "at character 16: momentum has no setting 'momentom'; did you ",
        ),
        (parse_optimizer, "momentum(0.1, 0.9, true, 3)", "at character 26: a value without a name; momentum takes "),
        (parse_optimizer, "sgd(0.1, learning_rate=0.2)", "at character 24: learning_rate was given before"),
        (parse_optimizer, "sgd(cosin(0.1))", "at character 5: no schedule is named 'cosin'; did you mean 'cosine'?"),
        (parse_optimizer, "sgd(cosine(updates=3))", "cosine needs learning_rate, as in cosine(0.1, updates=3)"),
        (parse_optimizer, "sgd(0.1", "'(' was never closed"),
        (parse_optimizer, "sgd:0.1", "at character 4: ':' has no meaning here"),
        (parse_optimizer, "adam(betas=0.9)", "at character 12: betas is a list, such as [0.9, 0.999]"),
        (parse_optimizer, "sgd(-1)", "SGD.learning_rate is -1; expected a schedule or a number of at least 0"),
        (parse_optimizer, "sgd(__import__)", "no schedule is named '__import__'"),
        (parse_optimizer, "sgd(1+1)", "at character 5: expected a number"),
        (parse_optimizer, "sgd(" + "9" * 3000 + ")", "the number is too large"),
        (parse_optimizer, "x" * 5000, "has 5,000 characters; at most 4,096 are read"),
        (parse_schedule, "cosine(10)", "says the learning rate 10 where 0.1 is given already"),
        (parse_schedule, "cosine()", "cosine needs updates, as in cosine(updates=10000)"),
        (parse_schedule, "cosine(updates=9, warmup_start=1)", "warmup_start was given without warmup"),
        (parse_group, "*bias*=grop()", "no group is named 'grop'; did you mean 'group'?"),
        (parse_group, "group(weight_decay=0)", "is not PATTERN=group"),
        (
            parse_group,
            "*b=group(learning_rate=2)",
            "no setting 'learning_rate'; did you mean 'learning_rate_multiplier'",
        ),
    ],
)
def test_an_error_names_the_place_and_the_nearest_name(parse: Callable[..., Any], text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, 0.1) if parse is parse_schedule else parse(text)
    assert message in str(caught.value)


def test_a_value_that_has_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no text"):
        as_text(object())  # type: ignore[arg-type]
