"""Launching: children are heard, named when they die, stopped in order, and never outlive their launcher."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from distnet._private import launcher_env
from distnet.alexnet.job.config import TrainConfig, read_config_file, write_config_file
from distnet.alexnet.job.evaluation import ScoringTimes
from distnet.alexnet.job.folder import FolderError, RunFolder, load_scored, save_scored
from distnet.alexnet.job.plan import make_plan, semantics_of
from distnet.alexnet.job.progress import JobProgress, WorkerProgress, percentiles
from distnet.errors import ConfigError
from distnet.launch.children import Child, Children, Ended, Line, describe_status
from distnet.semantics import SEMANTICS

PYTHON = [sys.executable, "-c"]
WAITS_FOR_EVER = "import signal, sys; print('ready', flush=True); signal.pause()"
IGNORES_BEING_TOLD = (
    "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)];"
    "print('ready', flush=True)\nwhile True: signal.pause()"
)


def hear(children: Children, *, until: int, within_s: float = 20.0) -> list[Line | Ended]:
    """Wait for so many events."""
    events: list[Line | Ended] = []
    give_up_s = time.monotonic() + within_s
    while len(events) < until and time.monotonic() < give_up_s:
        events.extend(children.wait(0.1))
    return events


def wait_until_gone(pid: int, within_s: float = 20.0) -> bool:
    """Wait for the end of a process that is not this one's child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


# ---- children --------------------------------------------------------------------------------------------------------
def test_a_child_is_heard_line_by_line_and_its_end_comes_last() -> None:
    with Children() as children:
        children.start("speaker", [*PYTHON, "import sys; print('one'); print('two'); sys.stderr.write('three')"])
        events = hear(children, until=4)
    lines = {(event.stream, event.text) for event in events if isinstance(event, Line)}
    assert lines == {("stdout", "one"), ("stdout", "two"), ("stderr", "three")}
    assert isinstance(events[-1], Ended)
    assert events[-1].status == 0


def test_a_long_line_without_an_end_arrives_whole() -> None:
    with Children() as children:
        children.start("speaker", [*PYTHON, "print('x' * 300_000, end='')"])
        events = hear(children, until=2)
    assert isinstance(events[0], Line)
    assert events[0].text == "x" * 300_000


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(7)", "ended with exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL (out of memory?)"),
        ("import os; os.abort()", "was killed by SIGABRT"),
    ],
)
def test_the_end_of_a_child_is_named(program: str, words: str) -> None:
    with Children() as children:
        children.start("worker 3", [*PYTHON, program])
        (event,) = hear(children, until=1)
    assert isinstance(event, Ended)
    assert event.child.name == "worker 3"
    assert describe_status(event.status) == words


def test_the_last_words_of_a_child_are_kept_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    with Children() as children:
        child = children.start("worker 0", [*PYTHON, "raise RuntimeError('no more milk')"], log=log)
        hear(children, until=1)
    assert "RuntimeError: no more milk" in child.last_words()


def test_a_program_that_does_not_exist_is_reported_by_its_end() -> None:
    with Children() as children:
        children.start("worker 0", ["/no/such/program"])
        events = hear(children, until=2)
    assert [event.text for event in events if isinstance(event, Line)] == [
        "cannot start /no/such/program: No such file or directory"
    ]


def test_leaving_the_block_stops_every_child() -> None:
    with Children() as children:
        started = [children.start(f"worker {rank}", [*PYTHON, WAITS_FOR_EVER]) for rank in range(3)]
        hear(children, until=3)
    assert [child.process.returncode for child in started] == [-signal.SIGINT] * 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say who handles a signal")
def test_a_child_that_handles_the_jobs_own_signal_is_told_by_it() -> None:
    handles = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); " + WAITS_FOR_EVER
    heard: list[Line | Ended] = []
    with Children() as children:
        one, other = (children.start(name, [*PYTHON, code]) for name, code in (("a", handles), ("b", WAITS_FOR_EVER)))
        hear(children, until=2)
        children.stop(told_by=signal.SIGTERM, heard=heard.append)
    assert one.process.returncode == 5
    assert other.process.returncode == -signal.SIGINT
    assert any(isinstance(event, Line) and event.text == "KeyboardInterrupt" for event in heard)


def test_a_child_that_ignores_being_told_is_killed() -> None:
    with Children() as children:
        child = children.start("stubborn", [*PYTHON, IGNORES_BEING_TOLD])
        hear(children, until=1)
        children.stop(grace_s=0.1)
    assert child.process.returncode == -signal.SIGKILL


def test_what_a_child_started_itself_ends_with_it() -> None:
    parent = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)"
    )
    with Children() as children:
        children.start("worker 0", [*PYTHON, parent])
        events = hear(children, until=2)
    assert isinstance(events[0], Line)
    assert wait_until_gone(int(events[0].text))


def test_a_line_sent_to_a_child_arrives_and_one_to_a_dead_child_is_no_error() -> None:
    with Children() as children:
        child = children.start("echo", [*PYTHON, "print(input())"], stdin=True)
        child.send("hello")
        events = hear(children, until=2)
        child.send("anybody?")
    assert isinstance(events[0], Line)
    assert events[0].text == "hello"


LAUNCHER = """
import sys, time
from distnet.launch.children import Children
with Children() as children:
    child = children.start("worker 0", [sys.executable, "-c", {program!r}])
    print(child.process.pid, flush=True)
    while True:
        for event in children.wait(0.1):
            print(event.text, flush=True)
"""


def test_children_end_when_their_launcher_is_killed() -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(program=IGNORES_BEING_TOLD)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    with launcher.stdout as output:
        pid = int(output.readline())
        assert output.readline() == "ready\n"
        launcher.kill()
        launcher.wait()
    assert wait_until_gone(pid)


# ---- what a launcher says --------------------------------------------------------------------------------------------
LAUNCHERS_VARIABLES = ("DISTNET_ADDRESS", "DISTNET_RANK", "DISTNET_WORKERS", "DISTNET_START")


def set_launcher(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> None:
    """Set the launcher's variables, and no other of them."""
    for name in LAUNCHERS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    set_launcher(monkeypatch, {})
    assert launcher_env.launched() is None


@pytest.mark.parametrize("start", [0, 2])
def test_a_script_hears_what_the_launcher_said(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    job = launcher_env.Launched(address="shm://x", rank=1, workers=3, start=start)
    said = launcher_env.script_environment(job, threads=2)
    assert said["OMP_NUM_THREADS"] == "2"
    set_launcher(monkeypatch, {name: value for name, value in said.items() if name.startswith("DISTNET_")})
    assert launcher_env.launched() == job


def test_a_launcher_need_not_say_which_start_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    set_launcher(monkeypatch, {"DISTNET_ADDRESS": "a", "DISTNET_RANK": "1", "DISTNET_WORKERS": "2"})
    assert launcher_env.launched() == launcher_env.Launched(address="a", rank=1, workers=2, start=0)


def test_a_supervisor_that_only_counts_starts_is_heard_and_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    set_launcher(monkeypatch, {"DISTNET_START": "3"})
    assert launcher_env.launched() is None
    assert launcher_env.start_number() == 3


def test_a_worker_of_distnets_own_hears_nothing_of_another_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = launcher_env.Launched(address="shm://x", rank=1, workers=3, start=1)
    for name, value in launcher_env.script_environment(job, threads=None).items():
        monkeypatch.setenv(name, value)
    environment = launcher_env.worker_environment(threads=None, scratch=tmp_path)
    assert [name for name in LAUNCHERS_VARIABLES if name in environment] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"DISTNET_RANK": "0"}, "DISTNET_ADDRESS, DISTNET_WORKERS not set"),
        (
            {"DISTNET_ADDRESS": "a", "DISTNET_RANK": "0", "DISTNET_WORKERS": "2", "DISTNET_START": "again"},
            "DISTNET_START is 'again'; expected a whole number",
        ),
        (
            {"DISTNET_ADDRESS": "a", "DISTNET_RANK": "0", "DISTNET_WORKERS": "2", "DISTNET_START": str(2**32)},
            "DISTNET_START is 4294967296; expected 0 for the first start",
        ),
        ({"DISTNET_ADDRESS": "a", "DISTNET_RANK": "2", "DISTNET_WORKERS": "2"}, "DISTNET_RANK is 2"),
        ({"DISTNET_ADDRESS": "a", "DISTNET_RANK": "-1", "DISTNET_WORKERS": "2"}, "DISTNET_RANK is '-1'"),
        ({"DISTNET_ADDRESS": "a", "DISTNET_RANK": "one", "DISTNET_WORKERS": "2"}, "expected a whole number"),
    ],
)
def test_a_launcher_that_makes_no_sense_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str], message: str
) -> None:
    set_launcher(monkeypatch, values)
    with pytest.raises(ConfigError, match=message):
        launcher_env.launched()


# ---- configuration ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(semantics="sync", workers=3, servers=2, epochs=0.5, seed=7, overlap=True),
        TrainConfig(semantics="local", workers=1, steps=10, data='a "folder" ü \\ here'),
        TrainConfig(optimizer="adam", learning_rate=1e-3, transport="tcp", evaluate="never"),
        TrainConfig(holdout=5_000, timeout=3600.0, checkpoint_every="500updates"),
        TrainConfig(schedule="cosine(updates=10)", groups=("*bias*=group(weight_decay=0)",), on_loss="wait"),
    ],
)
def test_a_written_configuration_is_read_back_the_same(tmp_path: Path, config: TrainConfig) -> None:
    write_config_file(tmp_path / "config.toml", config)
    assert TrainConfig.from_mapping(read_config_file(tmp_path / "config.toml")) == config


def test_json_is_read_as_well_as_toml(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"semantics": "sync", "workers": 4}))
    assert TrainConfig.from_mapping(read_config_file(tmp_path / "config.json")).workers == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers is 0; expected a whole number from 1"),
        ({"workers": 2.5}, "workers is 2.5"),
        ({"workers": True}, "workers is True"),
        ({"semantics": "asnyc-lockfree"}, "did you mean 'async-lockfree'"),
        ({"semantcs": "sync"}, "did you mean 'semantics'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"epochs": 1, "steps": 5}, "steps and epochs were both given"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"max_restarts": 2}, "max_restarts is a setting of distnet run"),
        ({"transport": "carrier pigeon"}, "expected one of auto, shm, tcp"),
        ({"semantics": "local"}, "one process without a server, but workers is 2"),
        ({"semantics": "async-sharded", "servers": 1}, "at least 2 servers"),
        ({"seed": -1}, "seed is -1"),
        ({"holdout": 0}, "holdout is 0; expected a whole number from 1"),
        ({"optimizer": "addam", "learning_rate": 0.1}, "did you mean 'adam'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_clear_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_mapping(values)


def test_a_round_waits_as_long_as_the_deadline_where_that_is_longer() -> None:
    assert semantics_of(TrainConfig(semantics="sync")) == SEMANTICS["sync"]
    patient = semantics_of(TrainConfig(semantics="sync", timeout=3600.0))
    assert patient == dataclasses.replace(SEMANTICS["sync"], round_timeout=3600.0)


@pytest.mark.parametrize("text", ["workers = ", "[train", "workers = 2\nworkers = 3"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML"):
        read_config_file(tmp_path / "broken.toml")


# ---- the run's folder ------------------------------------------------------------------------------------------------
pytest.importorskip("tensorboardX")


def test_a_folder_holds_records_and_numbers_for_tensorboard(tmp_path: Path) -> None:
    before = time.time()
    with RunFolder(tmp_path / "run", TrainConfig()) as folder:
        folder.record("worker", {"rank": 0, "loss": 2.3, "time_s": 1.0}, step=1)
        folder.record("server", {"updates": 1}, step=1)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["worker", "server"]
    assert all(before - 1 <= record["time"] <= time.time() + 1 for record in records), "seconds since the epoch"
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"worker 0/loss" in content
    assert b"server/updates" in content
    assert b"/time" not in content


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    RunFolder(tmp_path, TrainConfig()).close()
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder(tmp_path, TrainConfig())


def test_a_run_that_fails_before_its_first_record_leaves_no_folder(tmp_path: Path) -> None:
    def fail(folder: RunFolder) -> None:
        raise ConfigError("no data")

    for path in (tmp_path / "new", tmp_path / "old"):
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="no data"), RunFolder(path, TrainConfig()) as folder:
            fail(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "notes.txt"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot write .*file.*Not a directory; make room or give another folder"):
        RunFolder(tmp_path / "file" / "run", TrainConfig())


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with RunFolder(tmp_path, TrainConfig()) as folder, pytest.raises(FolderError, match="No space left on device"):
        folder.record("server", {"updates": 1}, step=1)


def test_parameters_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = {"a/b": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "b": numpy.zeros(0, numpy.float32)}
    save_scored(tmp_path / "x.npz", arrays)
    read = load_scored(tmp_path / "x.npz")
    assert set(read) == {"a/b", "b"}
    assert numpy.array_equal(read["a/b"], arrays["a/b"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_file_that_holds_no_parameters_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match=r"cannot read parameters from .*x.npz"):
        load_scored(tmp_path / "x.npz")


# ---- progress --------------------------------------------------------------------------------------------------------
def a_worker(rank: int, *points: tuple[float, int]) -> WorkerProgress:
    """Return a worker with those (time, examples)."""
    worker = WorkerProgress(rank)
    for time_s, examples in points:
        worker.record(
            {
                "time_s": time_s,
                "step": examples // 10,
                "examples": examples,
                "loss": 1.0,
                "staleness": 1,
                "staleness_counts": {"1": 1},
                "computing_s": 0.1,
                "exchanging_s": 0.0,
            }
        )
    return worker


def test_the_rate_is_that_of_the_time_all_workers_share() -> None:
    early = a_worker(0, (0.0, 0), (10.0, 1000))
    late = a_worker(1, (5.0, 0), (15.0, 500))
    job = JobProgress(title="", total_examples=1500, workers=[early, late])
    rate, seconds = job.rate_together()
    assert seconds == 5.0
    assert rate == pytest.approx(100.0 + 50.0)


def test_progress_counts_examples_of_all_workers_once() -> None:
    job = JobProgress(title="", total_examples=100, workers=[a_worker(0, (0.0, 10), (1.0, 40)), a_worker(1, (0.0, 60))])
    assert job.examples == 100
    assert job.staleness() == {1: 3}


@pytest.mark.parametrize(
    ("epochs", "times"),
    [
        (30, [1_000 * epoch for epoch in range(1, 30)]),  # once an epoch
        (1, [166, 332, 498, 664, 830]),  # with its end six times in a short run
        (500, [5_000 * count for count in range(1, 100)]),  # at most a hundred times in a long one
    ],
)
def test_parameters_are_scored_a_few_times_at_least_and_a_hundred_times_at_most(epochs: int, times: list[int]) -> None:
    plan = make_plan(TrainConfig(steps=epochs * 1_000 // 10, batch_size=10, workers=1), 1_000)
    scoring = ScoringTimes(plan)
    steps = range(0, plan.examples + 1, plan.batch_size)
    assert [done for done in steps if scoring.has_come(done)] == [-(-time // 10) * 10 for time in times]
    assert ScoringTimes(plan, done=times[1]).has_come(times[1]) is False, "that was scored before"


def test_percentiles_are_values_that_were_counted() -> None:
    assert percentiles({0: 90, 1: 9, 5: 1}) == {"mean": 0.14, "p50": 0, "p90": 0, "p99": 1, "max": 5}
    assert percentiles({}) == {"mean": 0.0, "p50": 0, "p90": 0, "p99": 0, "max": 0}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["ValueError: no milk", "", "W1129 leaked a process group"], "ValueError: no milk"),
        (["[rank0]:   File", "[rank0]: torch.OutOfMemoryError: full", "bye"], "torch.OutOfMemoryError: full"),
        (["[rank1]: distnet.errors.PeerClosed: gone", "[rank1]:[W1129] leaked"], "distnet.errors.PeerClosed: gone"),
        (["KeyError", "of a key"], "KeyError"),
        (["a.py:3: UserWarning: old", "distnet.errors.DistNetWarning: slow", "no more milk"], "no more milk"),
        ([], ""),
    ],
)
def test_the_last_line_of_a_failed_child_is_its_error_where_there_is_one(
    tmp_path: Path, lines: list[str], error: str
) -> None:
    program = f"import sys; sys.stderr.write({chr(10).join(lines)!r}); sys.exit(1)"
    with Children() as children:
        child = children.start("worker 0", [*PYTHON, program], log=tmp_path / "worker-0.log")
        hear(children, until=1)
    assert child.last_line == error


def test_a_child_object_says_nothing_without_a_log(tmp_path: Path) -> None:
    with Children() as children:
        child: Child = children.start("quiet", [*PYTHON, "pass"], log=tmp_path / "quiet.log")
        hear(children, until=1)
    assert child.last_words() == ""


@pytest.mark.parametrize("transport", ["auto", "shm"])
def test_formats_that_would_be_ignored_are_refused(transport: str) -> None:
    with pytest.raises(ConfigError, match="--transport tcp"):
        TrainConfig(push_format="int8", transport=transport)
    assert TrainConfig(push_format="int8", transport="tcp").push_format == "int8"
