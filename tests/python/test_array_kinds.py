"""Arrays as real code has them: what NumPy can see as float32 without a guess is taken, all else refused in words."""

from __future__ import annotations

import array
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from worker_processes import serve

import distnet
from distnet._private.arrays import float32_array

SHAPES: dict[str, tuple[int, ...]] = {
    "scale": (),
    "bias": (3,),
    "none": (0, 2),
    "dense": (2, 3),
    "images": (2, 3, 4, 5),
}


class Subclass(np.ndarray):
    """An array of a type of its own."""


class Holder:
    """What is no array and knows how to be seen as one, as the variables of frameworks do."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._values


def unaligned(values: np.ndarray) -> np.ndarray:
    memory = np.zeros(values.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(values.shape)
    memory[...] = values
    return memory


def strided(values: np.ndarray) -> np.ndarray:
    wide = np.zeros((*values.shape, 2), np.float32)
    wide[..., 0] = values
    return wide[..., 0]


def channels_last(values: np.ndarray) -> np.ndarray:
    """Return the values with the first axis but one last in memory, as images often lie there."""
    return np.moveaxis(np.moveaxis(values, 1, -1).copy(), -1, 1) if values.ndim > 2 else np.array(values, order="F")


def read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda values: values,
    "Fortran order": lambda values: np.array(values, order="F"),
    "channels last": channels_last,
    "strided": strided,
    "backwards": lambda values: np.flip(np.flip(values).copy()),
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian": lambda values: values.astype(">f4"),
    "subclass": lambda values: values.view(Subclass),
    "scalar": lambda values: values[()] if values.ndim == 0 else values,
    "by __array__": Holder,
    "a buffer": lambda values: array.array("f", values.tolist()) if values.ndim == 1 else values,
}


@pytest.fixture(scope="module")
def client() -> Iterator[distnet.Client]:
    """A worker of a server that subtracts what is pushed."""
    model = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    with serve(model, "async-apply", "shm") as server, distnet.connect(server.address, rank=0) as worker:
        yield worker


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=len(SHAPES), max_size=len(SHAPES)),
    order=st.permutations(list(SHAPES)),
    seed=st.integers(0, 2**32 - 1),
    call=st.sampled_from(["push_pull", "push", "begin_push_pull"]),
)
def test_what_numpy_sees_as_float32_arrives_as_it_is(
    client: distnet.Client, kinds: list[str], order: list[str], seed: int, call: str
) -> None:
    random = np.random.default_rng(seed)
    before = {name: np.copy(values) for name, values in client.pull().items()}
    plain = {name: np.asarray(random.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    kind_of = dict(zip(SHAPES, kinds, strict=True))
    begun = getattr(client, call)({name: KINDS[kind_of[name]](plain[name].copy()) for name in order})
    if call == "begin_push_pull":
        begun.wait()
    after: Any = client.pull()
    assert list(after) == list(SHAPES)
    for name, values in plain.items():
        np.testing.assert_array_equal(after[name], before[name] - values, err_msg=f"{name}, {kind_of[name]}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_and_a_bringer_take_what_a_push_takes(kind: str) -> None:
    plain = {name: np.full(shape, 2.5, np.float32) for name, shape in SHAPES.items()}
    given_ = {name: KINDS[kind](values.copy()) for name, values in plain.items()}
    with serve(given_, "async-apply", "shm") as server:
        held: Any = server.parameters()
    with serve(None, "async-apply", "shm") as server, distnet.connect(server.address, rank=0, parameters=given_):
        brought: Any = server.parameters()
    for name, values in plain.items():
        np.testing.assert_array_equal(held[name], values)
        np.testing.assert_array_equal(brought[name], values)


def test_arrays_in_the_engines_own_layout_are_used_where_they_are() -> None:
    plain = np.ones((2, 3), np.float32)
    assert float32_array(plain, "it") is plain
    assert np.shares_memory(float32_array(plain.view(Subclass), "it"), plain)
    assert np.shares_memory(float32_array(Holder(plain), "it"), plain)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.ones((2, 3)), r"'dense' is float64 \(2, 3\); the model's is float32 \(2, 3\): use \.astype\('float32'\)"),
        (np.ones((2, 3), np.float16), "'dense' is float16"),
        (np.ones((2, 3), int), "'dense' is int64"),
        (np.ones((2, 3), bool), "'dense' is bool"),
        (np.ones((2, 3), object), "'dense' is object"),
        (np.ones(6, np.float32), r"'dense' is float32 \(6,\).*use \.reshape\(\(2, 3\)\)"),
        (np.ones((2, 4), np.float32), r"'dense' is float32 \(2, 4\).*another model's"),
        (np.ma.masked_array(np.ones((2, 3), np.float32)), "'dense' is a masked array.*filled"),
        ([[1.0] * 3] * 2, r"'dense' is a list; .*numpy\.asarray"),
        (1.0, "'dense' is a float; expected a float32 array"),
        (None, "'dense' is None; expected a float32 array: zeros"),
        ({"kernel": np.ones((2, 3), np.float32)}, "'dense' is a dict.*'layer/w'"),
        (object(), "'dense' is an object, which NumPy cannot view"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_needs_a_guess_is_refused_with_its_name_and_a_remedy(
    client: distnet.Client, value: Any, words: str
) -> None:
    good = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    with pytest.raises(distnet.ManifestMismatch, match=words):
        client.push_pull({**good, "dense": value})
    client.push_pull(good)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({0: np.zeros(3, np.float32)}, "a tensor's name is 0, an int; expected strings"),
        ({("layer", "w"): np.zeros(3, np.float32)}, "a tensor's name is .*a tuple; expected strings"),
        ({"a\udc80": np.zeros(3, np.float32)}, "UTF-8"),
        ({"w": np.zeros(3, int)}, r"tensor 'w' is int64 \(3,\); parameters are floating-point numbers"),
        ([np.zeros(3, np.uint8)], r"tensor '0' is uint8 \(3,\); parameters are floating-point numbers"),
        ({"w": np.zeros(3, bool)}, r"tensor 'w' is bool \(3,\); parameters are floating-point numbers"),
        ({"w": np.zeros(3, complex)}, r"tensor 'w' is complex128 \(3,\); expected float32"),
        ({"w": np.array([0.0, -1e39])}, "tensor 'w' is float64 and holds values that float32 cannot"),
        (np.zeros(3, np.float32), r"a ndarray stands for the parameters.*pass \[array\]"),
        (iter([("w", np.zeros(3, np.float32))]), "a pair of a name and a value.*a dict"),
        (7, "an int stands for the parameters"),
    ],
    ids=[
        "int",
        "tuple",
        "surrogate",
        "int64",
        "uint8",
        "bool",
        "complex",
        "too large",
        "one array",
        "pairs",
        "a number",
    ],
)
def test_parameters_that_are_none_are_refused_at_the_servers_start(parameters: Any, words: str) -> None:
    with pytest.raises(distnet.ManifestMismatch, match=words):
        distnet.ParameterServer(parameters)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f8"])
@pytest.mark.parametrize("brought", [False, True], ids=["by the server", "by rank 0"])
def test_parameters_of_other_floats_are_cast_once(kind: Any, brought: bool) -> None:
    model: Any = {"w": np.array([[1.5, 1e-3], [-np.inf, 7.0]], kind), "b": np.ones(3, np.float32)}
    with (
        distnet.ParameterServer(None if brought else model, semantics="sync", workers=1) as server,
        distnet.connect(server.address, rank=0, parameters=model) as client,
    ):
        held = client.pull()
        for name, values in model.items():
            assert held[name].dtype == np.float32
            np.testing.assert_array_equal(held[name], values.astype(np.float32))


def test_parameters_in_bfloat16_are_cast_once() -> None:
    torch = pytest.importorskip("torch")
    model = {"w": torch.nn.Parameter(torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16))}
    kinds = [model]
    with contextlib.suppress(ImportError):  # NumPy's own arrays of it, as TensorFlow's are
        import ml_dtypes

        kinds.append({"w": np.array([1.0, 1.0078125], ml_dtypes.bfloat16)})
    for one in kinds:
        with distnet.ParameterServer(one) as server:
            held: Any = server.parameters()
            np.testing.assert_array_equal(held["w"], np.array([1.0, 1.0078125], np.float32))


def test_tensors_of_pytorch_are_parameters_and_gradients() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten(), torch.nn.Linear(4, 1))
    module = module.to(memory_format=torch.channels_last)
    before = {name: value.detach().numpy().copy() for name, value in module.named_parameters()}
    with (
        serve(dict(module.named_parameters()), "async-apply", "shm") as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        module(torch.ones(2, 3, 2, 2)).sum().backward()
        after = client.push_pull({name: value.grad for name, value in module.named_parameters()})
        for name, value in module.named_parameters():
            np.testing.assert_array_equal(after[name], before[name] - value.grad.numpy())
        gradients = {name: value.grad for name, value in module.named_parameters()}
        for kind, words in [
            (torch.bfloat16, "'0.bias' is a Tensor that NumPy cannot view"),
            (torch.float64, r"'0.bias' is float64 \(4,\); .*use \.float\(\)"),
        ]:
            with pytest.raises(distnet.ManifestMismatch, match=words):
                client.push_pull({**gradients, "0.bias": gradients["0.bias"].to(kind)})
