"""Holds the floors of docs/design/architecture.md against the real includes and imports, and what no floor may do.

The tables come first; a new file of an existing folder needs no line here, a new module or folder needs one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from source_rules import cpp_code, cpp_includes, python_calls, python_imports, python_names

ROOT = Path(__file__).parents[2]

# ---- C++: which folders of csrc/ a folder may include, beside itself -----------------------------------------------
CPP_MAY_INCLUDE: Mapping[str, set[str]] = {
    "base": set(),
    "kernels": {"base"},
    "optim": {"base", "kernels"},
    "wire": {"base", "kernels"},
    "store": {"base", "kernels", "optim"},
    "sessions": {"base", "wire"},
    "transport": {"base", "kernels", "wire"},
    "front": {"base", "wire", "sessions", "transport"},
    "group": {"base", "kernels", "wire", "sessions", "transport", "front"},
    "server": {"base", "kernels", "optim", "wire", "store", "sessions", "transport", "front"},
    "client": {"base", "kernels", "wire", "transport"},
    "bindings": {
        *("base", "kernels", "optim", "wire", "store", "sessions", "transport", "front", "server", "client", "group")
    },
}
# A simulation can drive what asks base/ for the time, for threads and for every wait; sockets have a room of their own.
CPP_WAITS_ALLOWED = ("base/",)
CPP_SOCKETS_ALLOWED = (
    "base/",
    "transport/stream.",
    "transport/connector.",
    "transport/listener.",
    "transport/socket_address.",
)
# Headers that only some may include: a prefix of what stands between the brackets, and who may.
CPP_GUARDED_HEADERS: Mapping[str, tuple[str, ...]] = {
    "pybind11/": ("bindings/",),
    "Python.h": (),
    "linux/": ("base/platform_linux.cc",),
    "sys/syscall.h": ("base/platform_linux.cc",),
    "sys/epoll.h": ("base/platform_linux.cc",),
    "sys/eventfd.h": ("base/platform_linux.cc",),
    "sys/prctl.h": ("base/platform_linux.cc",),
    **dict.fromkeys(["condition_variable", "shared_mutex", "semaphore", "latch", "barrier"], CPP_WAITS_ALLOWED),
    **dict.fromkeys(["future", "stop_token", "thread", "poll.h", "sys/select.h"], CPP_WAITS_ALLOWED),
    **dict.fromkeys(["sys/socket.h", "sys/un.h", "netinet/", "netdb.h", "arpa/"], CPP_SOCKETS_ALLOWED),
    "iostream": (),
    "print": (),
}
# Names that no code may use, and the files that may all the same.
CPP_FORBIDDEN_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(["getenv", "secure_getenv", "environ", "setenv", "putenv"], ()),
    **dict.fromkeys(["printf", "vprintf", "vfprintf", "puts", "fputs", "putchar", "fputc", "perror", "dprintf"], ()),
    **dict.fromkeys(["std::cout", "std::cerr", "std::clog", "std::print", "std::println"], ()),
    "fprintf": ("base/error.cc",),  # the last words of an aborting invariant
    "STDOUT_FILENO": (),
    "STDERR_FILENO": (),
    "memfd_create": ("base/platform_linux.cc",),
    "SYS_futex": ("base/platform_linux.cc",),
    "fork": (),
    # Linux does not run a thread again for seconds that yields while others are busy: see base/waiting.h.
    **dict.fromkeys(["sched_yield", "pthread_yield", "std::this_thread::yield"], ()),
}
# What only some may use: how it looks in code, and a prefix of the files that may.
_FREE = r"(?<![\w.>:])(?:::)?"  # before a function that belongs to no class
_GLOBAL = r"(?<![\w>:])::"  # the same where methods have that name too: our code writes such calls with "::"
CPP_RESERVED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{
        name: (rf"(?<!\w){re.escape(name)}\b", CPP_WAITS_ALLOWED)
        for name in (
            *("std::mutex", "std::timed_mutex", "std::recursive_mutex", "std::shared_mutex", "std::condition_variable"),
            *("std::condition_variable_any", "std::latch", "std::barrier", "std::counting_semaphore"),
            *("std::binary_semaphore", "std::future", "std::promise", "std::async", "std::thread", "std::jthread"),
            *("std::this_thread::sleep_for", "std::this_thread::sleep_until"),
            *("steady_clock::now", "system_clock::now", "high_resolution_clock::now", "Clock::now"),
            *("clock_gettime", "gettimeofday", "pthread_create", "nanosleep", "usleep", "epoll_wait", "epoll_pwait"),
        )
    },
    "the wait of std::atomic": (r"\.wait\([^;]*memory_order", ()),  # it yields before it sleeps
    **{f"{name}()": (rf"{_FREE}{name}\s*\(", CPP_WAITS_ALLOWED) for name in ("poll", "ppoll", "pselect")},
    **{
        f"{name}()": (rf"{_FREE}{name}\s*\(", CPP_SOCKETS_ALLOWED)
        for name in (
            *("accept4", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "sendto", "recvfrom", "setsockopt"),
            *("getsockopt", "getpeername", "getsockname", "socketpair", "getaddrinfo"),
        )
    },
    **{
        f"::{name}()": (rf"{_GLOBAL}{name}\s*\(", CPP_SOCKETS_ALLOWED)
        for name in ("socket", "connect", "bind", "listen", "accept", "send", "recv", "shutdown")
    },
}

# ---- Python: the floors of distnet/, from the lowest; a name stands for a module, or for a package with all in it --
# A room imports from lower floors alone, so there is no circle.
PYTHON_FLOORS: tuple[set[str], ...] = (
    {"errors"},
    {"_private"},
    {"schedules", "formats", "semantics", "tuning", "stats", "data"},
    {"optimizers", "snapshot"},
    {"_native", "checkpoint"},
    {"settings", "shards", "stores"},
    {"server", "client", "process_group"},
    {"__init__"},
    {"frameworks"},
    {"tensorflow", "torch", "jax"},
    {"keras"},
    {"launch"},
    {"benchmark"},
    {"alexnet"},
    {"cli"},
    {"__main__"},
)
# Rooms of launch/: which others of them each may import; none imports what lies beside them.
LAUNCH_ROOMS: Mapping[str, set[str]] = {"output": set(), "watching": set(), "children": {"output"}}
NATIVE_IMPORTERS = {"server", "client", "process_group", "stores", "shards", "torch"}
# Frameworks: who may import each.
FRAMEWORK_IMPORTERS: Mapping[str, set[str]] = {
    "tensorflow": {"tensorflow", "alexnet", "data", "keras"},  # data/: the copy of CIFAR-10 that Keras keeps
    "keras": {"tensorflow", "keras", "data", "alexnet"},
    "torch": {"torch", "checkpoint", "keras"},
    "jax": {"jax", "keras"},
    "jaxlib": {"jax", "keras"},
}
# Which files of distnet/keras/ may import each backend; the others work with every backend.
KERAS_ROUTES: Mapping[str, set[str]] = {
    "tensorflow": {"distnet/keras/routes/tensorflow.py", "distnet/keras/routes/mailbox.py"},
    "torch": {"distnet/keras/routes/torch.py", "distnet/keras/sharing/torch.py"},
    "jax": {"distnet/keras/routes/jax.py"},
    "jaxlib": set(),
}
# Other packages: who may import them. NumPy and the standard library are everybody's.
PACKAGE_IMPORTERS: Mapping[str, set[str]] = {
    "distnet_torch_backend": {"torch"},  # ours, beside distnet/: runs in every `import torch`
    "click": {"cli"},
    "matplotlib": {"alexnet"},
    "rich": {"alexnet", "cli"},
    "safetensors": {"alexnet"},
    "tensorboardX": {"alexnet"},
    "tomli": {"alexnet"},
}
FORBIDDEN_IMPORTS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "builtins.eval", "builtins.exec", "os.fork", "os.system"}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}
ENVIRONMENT_READER = "_private/launcher_env.py"


# ---- the rules: each returns what is wrong with one file -----------------------------------------------------------
def cpp_faults(path: str, source: str) -> list[str]:
    """Return the faults of a C++ file, whose path is relative to csrc/."""
    folder = path.split("/")[0]
    if folder not in CPP_MAY_INCLUDE:
        return [f"csrc/{folder}/ has no line in CPP_MAY_INCLUDE"]
    faults = []
    for header in cpp_includes(source):
        name = header[1:-1]
        if header.startswith('"') and name.split("/")[0] not in CPP_MAY_INCLUDE[folder] | {folder}:
            faults.append(f"{folder}/ may not include {name}")
        faults += [
            f"only {allowed or 'nobody'} may include <{name}>"
            for prefix, allowed in CPP_GUARDED_HEADERS.items()
            if (name.startswith(prefix) if prefix.endswith("/") else name == prefix) and not path.startswith(allowed)
        ]
    code = cpp_code(source)
    faults += [
        f"uses {name}"
        for name, allowed in CPP_FORBIDDEN_NAMES.items()
        if path not in allowed and re.search(rf"(?<![\w]){re.escape(name)}\b", code)
    ]
    faults += [
        f"uses {name}, which only {' and '.join(allowed) or 'nobody'} may"
        for name, (pattern, allowed) in CPP_RESERVED.items()
        if not path.startswith(allowed) and re.search(pattern, code)
    ]
    return faults


def floor_of(room: str) -> int | None:
    """Return the floor of a module or package of distnet/."""
    return next((floor for floor, rooms in enumerate(PYTHON_FLOORS) if room in rooms), None)


def python_faults(path: str, source: str) -> list[str]:
    """Return the faults of a Python file, whose path is relative to the folder that holds distnet/."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    room = parts[1]
    floor = floor_of(room)
    if floor is None:
        return [f"distnet.{room} has no floor in PYTHON_FLOORS"]
    module = ".".join(parts[:-1] if is_package else parts)
    imports = list(python_imports(source, module=module, is_package=is_package, modules=MODULES))
    faults = [f"line {i.line}: {fault}" for i in imports if (fault := _import_fault(room, floor, i.module))]
    if room == "keras":
        backends = {package for i in imports if (package := i.module.partition(".")[0]) in KERAS_ROUTES}
        faults += [f"imports {each} outside its routes" for each in backends if path not in KERAS_ROUTES[each]]
    faults += [f"line {line}: calls {name}" for name, line in python_calls(source) if name in FORBIDDEN_CALLS]
    if not path.endswith(ENVIRONMENT_READER):
        names = python_names(source)
        faults += [f"line {line}: {name} outside {ENVIRONMENT_READER}" for name, line in names if name in ENVIRONMENT]
    return faults


def _import_fault(room: str, floor: int, imported: str) -> str | None:
    package, _, rest = imported.partition(".")
    if package == "distnet":
        return _room_fault(room, floor, rest.split(".")[0] or "__init__")
    if package in FORBIDDEN_IMPORTS:
        return f"imports {package}"
    if package in FRAMEWORK_IMPORTERS:
        return None if room in FRAMEWORK_IMPORTERS[package] else f"imports the framework {package}"
    if package == "numpy" or package in sys.stdlib_module_names:
        return None
    if package not in PACKAGE_IMPORTERS:
        return f"imports {package}, which has no line in PACKAGE_IMPORTERS"
    return None if room in PACKAGE_IMPORTERS[package] else f"imports {package}"


def _room_fault(room: str, floor: int, target: str) -> str | None:
    target_floor = floor_of(target)
    if target_floor is None:
        return f"imports distnet.{target}, which has no floor in PYTHON_FLOORS"
    if target == "_native":
        return None if room in NATIVE_IMPORTERS else "imports the native module"
    if target == room or target_floor < floor:
        return None
    return f"imports distnet.{target} (floor {target_floor}) from floor {floor}"


# ---- the real files ------------------------------------------------------------------------------------------------
CPP_FILES = sorted(
    p.relative_to(ROOT / "csrc").as_posix() for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cc")
)
PYTHON_FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "distnet").rglob("*.py"))
MODULES = frozenset({
    "distnet._native",
    *(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in PYTHON_FILES),
})  # fmt: skip


@pytest.mark.parametrize("path", CPP_FILES)
def test_a_cpp_file_keeps_to_its_floor(path: str) -> None:
    assert cpp_faults(path, (ROOT / "csrc" / path).read_text()) == []


@pytest.mark.parametrize("path", CPP_FILES)
def test_quoted_includes_are_files_of_csrc(path: str) -> None:
    headers = cpp_includes((ROOT / "csrc" / path).read_text())
    assert [h for h in headers if h.startswith('"') and not (ROOT / "csrc" / h[1:-1]).is_file()] == []


@pytest.mark.parametrize("path", PYTHON_FILES)
def test_a_python_file_keeps_to_its_floor(path: str) -> None:
    assert python_faults(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("room", LAUNCH_ROOMS)
def test_a_room_of_launch_stands_without_what_uses_it(room: str) -> None:
    paths = [path for path in PYTHON_FILES if path.startswith(f"distnet/launch/{room}/")]
    modules = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]
    imported = {
        i.module
        for path, module in zip(paths, modules, strict=True)
        for i in python_imports(
            (ROOT / path).read_text(), module=module, is_package=path.endswith("__init__.py"), modules=MODULES
        )
        if i.module.startswith("distnet.launch.")
    }
    assert imported, "there are imports within the room"
    assert {module.split(".")[2] for module in imported} <= LAUNCH_ROOMS[room] | {room}


def test_the_files_are_found() -> None:
    assert {"base/error.h", "optim/table.cc", "wire/protocol.h"} <= set(CPP_FILES)
    assert {"distnet/errors.py", "distnet/semantics.py"} <= set(PYTHON_FILES)


# ---- the rules can fail --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("store/a.cc", '#include "transport/channel.h"', "store/ may not include transport/channel.h"),
        ("transport/a.cc", '#include "store/store.h"', "transport/ may not include store/store.h"),
        ("server/a.cc", '#include "client/client.h"', "server/ may not include client/client.h"),
        ("client/a.cc", '#include "bindings/arrays.h"', "client/ may not include bindings/arrays.h"),
        ("server/a.cc", "#include <pybind11/numpy.h>", "only ('bindings/',) may include <pybind11/numpy.h>"),
        ("base/a.cc", "#  include <linux/futex.h>", "only ('base/platform_linux.cc',) may include <linux/futex.h>"),
        ("base/a.cc", 'const char* home = std::getenv("HOME");', "uses getenv"),
        ("wire/a.cc", "std::cerr << 1;", "uses std::cerr"),
        ("wire/a.cc", 'std::printf("x");', "uses printf"),
        ("new/a.cc", "", "csrc/new/ has no line in CPP_MAY_INCLUDE"),
    ],
)
def test_a_fault_in_cpp_is_seen(path: str, source: str, fault: str) -> None:
    assert fault in cpp_faults(path, source)


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        ("store/a.h", "std::mutex mutex_;", "std::mutex"),
        ("store/a.h", "std::condition_variable changed_;", "std::condition_variable"),
        ("optim/a.cc", "std::thread worker([] {});", "std::thread"),
        ("bindings/a.cc", "std::this_thread::sleep_for(1s);", "std::this_thread::sleep_for"),
        ("store/a.cc", "const auto t = std::chrono::steady_clock::now();", "steady_clock::now"),
        ("front/a.cc", "const auto t = Clock::now();", "Clock::now"),
        ("front/a.cc", "while (poll(&entry, 1, -1) < 0) {}", "poll()"),
        ("front/a.cc", "return ::ppoll(&entry, 1, nullptr, nullptr);", "ppoll()"),
        ("sessions/a.cc", "const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);", "::socket()"),
        ("front/a.cc", "if (setsockopt(fd, 0, 0, nullptr, 0) != 0) {}", "setsockopt()"),
        ("front/a.cc", "n = ::recv(fd, to, 1, 0);", "::recv()"),
        ("front/a.cc", "n = sendmsg(fd, &message, 0);", "sendmsg()"),
    ],
)
def test_waits_and_sockets_are_seen_outside_their_rooms(path: str, source: str, name: str) -> None:
    assert [fault.split(", which only")[0] for fault in cpp_faults(path, source)] == [f"uses {name}"]
    assert cpp_faults("base/a.cc", source) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("word_.wait(\n    0, std::memory_order_acquire);", "the wait of std::atomic"),
        ("std::this_thread::yield();", "std::this_thread::yield"),
        ("sched_yield();", "sched_yield"),
    ],
)
def test_nobody_yields(source: str, name: str) -> None:
    for path in ("base/a.cc", "store/a.cc"):
        assert [fault.split(", which only")[0] for fault in cpp_faults(path, source)] == [f"uses {name}"]


def test_each_kind_of_control_message_has_a_number_of_its_own() -> None:
    source = cpp_code((ROOT / "csrc/wire/control_messages.h").read_text())
    kinds = source.partition("enum class ControlKind")[2].partition("};")[0]
    numbers = re.findall(r"= (\d+)", kinds)
    assert len(numbers) > 30
    assert sorted(set(numbers)) == sorted(numbers)


def test_waits_of_our_own_are_no_fault() -> None:
    source = """
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closed_; });
      poll_until({&entry, 1}, deadline);
      socket_.send(bytes), channel->poll(), control_.socket().shutdown(), Channel::send(bytes), now();
    """
    assert cpp_faults("front/a.cc", source) == []


@pytest.mark.parametrize(
    "source",
    [
        '// #include "store/store.h"',
        "/* std::cout and getenv( */ int i = 1'000'000;",
        'const char* text = "printf(\\"getenv\\")"; char quote = \'"\'; int n = std::snprintf(b, 1, "std::cout");',
        'auto raw = R"x(std::cout << "a" )y" getenv())x";',
    ],
)
def test_comments_and_strings_of_cpp_are_no_code(source: str) -> None:
    assert cpp_faults("base/a.cc", source) == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("distnet/server.py", "from distnet.client import Client", "imports distnet.client (floor 6) from floor 6"),
        ("distnet/client/a.py", "def f():\n    import distnet.server", "imports distnet.server (floor 6) from floor 6"),
        ("distnet/errors.py", "from . import server", "imports distnet"),
        ("distnet/launch/a.py", "from distnet.alexnet import job", "imports distnet.alexnet (floor 13) from floor 11"),
        ("distnet/data/a.py", "from distnet import _native", "imports the native module"),
        ("distnet/data/a.py", "import importlib\nimportlib.import_module('torch')", "imports the framework torch"),
        ("distnet/launch/a.py", "import tensorflow as tf", "imports the framework tensorflow"),
        ("distnet/keras/a.py", "import torch", "imports torch outside its routes"),
        ("distnet/keras/routes/jax.py", "import tensorflow", "imports tensorflow outside its routes"),
        ("distnet/launch/a.py", "import numpy, pickle", "imports pickle"),
        ("distnet/launch/a.py", "import click", "imports click"),
        ("distnet/client/a.py", "import requests", "imports requests, which has no line in PACKAGE_IMPORTERS"),
        ("distnet/client/a.py", "eval('1')", "calls eval"),
        ("distnet/client/a.py", "import os\nhome = os.environ['HOME']", "os.environ outside _private/launcher_env.py"),
        ("distnet/_private/a.py", "from os import getenv", "os.getenv outside _private/launcher_env.py"),
        ("distnet/new.py", "", "distnet.new has no floor in PYTHON_FLOORS"),
    ],
)
def test_a_fault_in_python_is_seen(path: str, source: str, fault: str) -> None:
    assert any(fault in line for line in python_faults(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distnet/alexnet/a.py", "import tensorflow\nfrom distnet import Client"),
        ("distnet/tensorflow.py", "import tensorflow as tf\nfrom distnet.data.shares import shard_indices"),
        ("distnet/cli/a.py", "from distnet.launch import children\nimport click"),
        ("distnet/client/a.py", "from distnet import _native\nmodel.eval(); self.exec_()"),
        ("distnet/_private/launcher_env.py", "import os\nos.environ.get('DISTNET_RANK')"),
    ],
)
def test_what_a_floor_may_do_is_no_fault(path: str, source: str) -> None:
    assert python_faults(path, source) == []
