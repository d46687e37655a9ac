"""The names of the package: those of the contract are there, each module's ``__all__`` is exact, importing is cheap."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

import pytest

import distnet

# What each module offers to users, exactly: a new public name is a line here, and a promise.
ERRORS = {
    "DistNetError", "ConfigError", "CheckpointError", "ManifestMismatch", "TransportError", "ConnectError",
    "PeerClosed", "DeadlineExceeded", "ProtocolError", "RoundAborted", "NonFiniteGradient", "Unauthorized",
    "Fenced", "CollectiveMismatch", "Interrupted", "DistNetWarning",
}  # fmt: skip
SCHEDULES = {"CosineDecay", "ExponentialDecay", "PiecewiseConstant", "Warmup"}
OPTIMIZERS = {
    *("OPTIMIZERS", "Optimizer", "SGD", "Momentum", "Adagrad", "RMSProp", "Adam", "AdamW", "NAdam", "Lion", "Group"),
    "OuterNesterov",
    *SCHEDULES,
}
CLIENT = {"Client", "Handle", "connect"}
PROCESS_GROUP = {"GroupCoordinator", "ProcessGroup", "Work"}
STORES = {"MutexStore", "LockFreeStore"}
PUBLIC_NAMES: Mapping[str, set[str]] = {
    "distnet": {
        "SEMANTICS",
        "Semantics",
        "ParameterServer",
        "Snapshot",
        "FORMATS",
        "Tuning",
        "shard_indices",
        "steps_of",
        *CLIENT,
        *OPTIMIZERS,
        *PROCESS_GROUP,
        *STORES,
        *ERRORS,
    },
    "distnet.checkpoint": {
        "Checkpoint",
        "CheckpointFolder",
        "Difference",
        "Every",
        "Restored",
        "load",
        "load_into_keras",
        "parse_every",
        "torch_state_dict",
    },
    "distnet.client": CLIENT,
    "distnet.errors": ERRORS,
    "distnet.formats": {"FORMATS", "format_spec"},
    "distnet.optimizers": {
        *OPTIMIZERS,
        "LearningRate",
        "Schedule",
        "from_spec",
        "state_meaning",
        "state_names",
        "state_vectors",
    },
    "distnet.process_group": PROCESS_GROUP,
    "distnet.schedules": {*SCHEDULES, "LearningRate", "Schedule"},
    "distnet.semantics": {"SEMANTICS", "Semantics", "resolve_semantics"},
    "distnet.server": {"ParameterServer"},
    "distnet.snapshot": {"Snapshot"},
    "distnet.stats": {
        "EndedSession",
        "ServerStatistics",
        "SessionStatistics",
        "ShardStatistics",
        "StalenessStatistics",
        "Statistics",
    },
    "distnet.stores": STORES,
    "distnet.tuning": {"Tuning"},
    "distnet.tensorflow": {"TensorFlowWorker", "StepMetrics", "choose_device", "limit_threads", "prepare"},
    "distnet.data": {"shard_indices", "steps_of"},
    "distnet.jax": {"DistributedOptimizer", "Job", "PushPull", "join", "push_pull"},
    "distnet.cli.main": {"main"},
}
# Packages without which a module cannot be imported: it is tested where they are.
NEEDS = {"distnet.tensorflow": "tensorflow", "distnet.jax": "jax", "distnet.cli.main": "click"}
# Packages whose names are promised as well.
PUBLIC_PACKAGES = {
    "distnet.checkpoint",
    "distnet.client",
    "distnet.data",
    "distnet.jax",
    "distnet.optimizers",
    "distnet.process_group",
    "distnet.cli.main",
}
# What `import distnet` may load beside itself and the standard library.
IMPORTED_WITH_DISTNET = {"distnet", "numpy"}


def public_module(name: str) -> ModuleType:
    """Import a module of distnet, or skip the test where what it needs is not installed."""
    needed = NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    return importlib.import_module(name)


def test_every_public_module_has_its_line() -> None:
    modules = {
        m.name for m in pkgutil.iter_modules(distnet.__path__, "distnet.") if not m.ispkg and ".__" not in m.name
    }
    assert modules - {"distnet._native"} == set(PUBLIC_NAMES) - {"distnet"} - PUBLIC_PACKAGES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_all_is_exact(name: str) -> None:
    exported = list(public_module(name).__all__)
    assert len(exported) == len(set(exported)), "a name stands twice in __all__"
    assert set(exported) == PUBLIC_NAMES[name]


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_names_can_be_imported(name: str) -> None:
    module = public_module(name)
    assert [n for n in PUBLIC_NAMES[name] if not hasattr(module, n)] == []


def test_the_package_has_no_public_name_beyond_all() -> None:
    names = {n for n, value in vars(distnet).items() if not n.startswith("_") and not inspect.ismodule(value)}
    assert names - {"annotations"} == set(distnet.__all__)


def test_the_version_is_that_of_the_package() -> None:
    assert distnet.__version__ == importlib.metadata.version("distnet-ps")


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_things_have_docstrings(name: str) -> None:
    module = public_module(name)
    things = (getattr(module, n) for n in module.__all__)
    described = [thing for thing in things if inspect.isclass(thing) or inspect.isfunction(thing)]
    assert module.__doc__
    assert [thing.__name__ for thing in described if not inspect.getdoc(thing)] == []


def test_errors_are_what_users_of_python_expect() -> None:
    assert issubclass(distnet.Fenced, distnet.TransportError)
    assert issubclass(distnet.CollectiveMismatch, ValueError)
    assert issubclass(distnet.DistNetWarning, UserWarning)
    assert not issubclass(distnet.DistNetWarning, distnet.DistNetError)


def test_import_distnet_imports_numpy_only(record_property: Callable[[str, object], None]) -> None:
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
