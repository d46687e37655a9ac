"""The names of the package: those of the contract are there, each module's ``__all__`` is exact, importing is cheap."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import distnet

# Names that users, examples and outside checks hold on to (docs/architecture.md). Others may join them in `__all__`.
CONTRACT = {
    "connect", "ParameterServer", "Client", "Semantics", "SEMANTICS", "Group",
    "SGD", "Momentum", "Adagrad", "RMSProp", "Adam", "AdamW",
    "ConstantRate", "ExponentialDecay", "PiecewiseConstant", "CosineDecay", "Warmup",
    "MutexStore", "LockFreeStore",
    "DistNetError", "ConfigError", "ManifestMismatch", "TransportError", "ConnectError", "PeerClosed",
    "DeadlineExceeded", "ProtocolError", "RoundAborted", "NonFiniteGradient", "Unauthorized",
}  # fmt: skip
# Modules that need a package which may be missing: they are tested where it is there.
NEEDS = {
    "distnet.tensorflow": "tensorflow",
    "distnet.keras": "keras",
    "distnet.torch": "torch",
    "distnet.jax": "jax",
}
# What `import distnet` may load beside itself and the standard library.
IMPORTED_WITH_DISTNET = {"distnet", "numpy"}

PUBLIC_MODULES = sorted(
    info.name
    for info in pkgutil.iter_modules(distnet.__path__, "distnet.")
    if not info.ispkg and not info.name.split(".")[-1].startswith("_")
)


def public_module(name: str) -> ModuleType:
    """Import a module of distnet, or skip the test where what it needs is not installed."""
    needed = NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    return importlib.import_module(name)


def test_the_names_of_the_contract_are_public() -> None:
    assert set(distnet.__all__) >= CONTRACT


def test_every_public_name_of_the_package_is_there_once() -> None:
    assert len(distnet.__all__) == len(set(distnet.__all__))
    assert [name for name in distnet.__all__ if not hasattr(distnet, name)] == []


def test_the_package_has_no_public_name_beyond_all() -> None:
    names = {n for n, value in vars(distnet).items() if not n.startswith("_") and not inspect.ismodule(value)}
    assert names - {"annotations"} == {name for name in distnet.__all__ if not name.startswith("_")}


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_of_a_module_is_exact(name: str) -> None:
    module = public_module(name)
    exported = list(module.__all__)
    defined = {
        n for n, v in vars(module).items()
        if not n.startswith("_") and (inspect.isclass(v) or inspect.isfunction(v)) and v.__module__ == name
    }  # fmt: skip
    assert len(exported) == len(set(exported)), "a name stands twice in __all__"
    assert [n for n in exported if not hasattr(module, n)] == [], "__all__ names what is not there"
    assert defined - set(exported) == set(), "public definitions that __all__ does not name"


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_things_have_docstrings(name: str) -> None:
    module = public_module(name)
    things = (getattr(module, n) for n in module.__all__)
    described = [thing for thing in things if inspect.isclass(thing) or inspect.isfunction(thing)]
    assert module.__doc__
    assert [thing.__name__ for thing in described if not inspect.getdoc(thing)] == []


def test_import_distnet_imports_numpy_only(record_property: pytest.RecordProperty) -> None:
    script = (
        "import json, sys, time\n"
        "import numpy\n"
        "before, began = set(sys.modules), time.perf_counter()\n"
        "import distnet\n"
        "print(json.dumps([time.perf_counter() - began, sorted(set(sys.modules) - before)]))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    seconds, modules = json.loads(run.stdout)
    packages = {module.split(".")[0] for module in modules}
    record_property("cold_import_s", seconds)
    print(f"import distnet, beside NumPy: {seconds * 1e3:.0f} ms, {len(modules)} modules")
    assert "distnet" in packages
    assert packages - IMPORTED_WITH_DISTNET - set(sys.stdlib_module_names) == set()
