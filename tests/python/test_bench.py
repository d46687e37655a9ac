"""The benchmarks' harness on made-up times: ratios within turns, answers checked, sizes, and the report's page."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distnet.benchmark.bounds import COPYING, SOCKETS, UPDATE, WAITING, WAKING, explain
from distnet.benchmark.measure import loopback, push_pull, python_layer, sgd_on_two_cores, unix_socket
from distnet.benchmark.sizes import SIZES, Size
from distnet.benchmark.turns import Contender, Spread, Timing, WrongAnswer, difference, ratio, time_in_turns

BENCH = Path(__file__).parents[2] / "bench"
TINY = Size("tiny", (5, 3))


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    """The modules of bench/, which import one another by their bare names."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(BENCH))
    try:
        names = ("doors", "groups", "many_workers", "plots", "report", "rivals", "targets")
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(BENCH))


# ---- sizes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "tensors", "floats"),
    [
        ("small", 1, 1024),
        ("medium", 1, 16_384),
        ("alexnet", 10, 1_068_298),
        ("resnet50", 161, 25_557_032),  # as torchvision counts them
        ("bert", 199, 109_482_240),  # as its authors' checkpoint holds them
    ],
)
def test_a_model_has_as_many_parameters_as_the_real_one(name: str, tensors: int, floats: int) -> None:
    assert (len(SIZES[name].tensors), SIZES[name].floats) == (tensors, floats)


# ---- turns -----------------------------------------------------------------------------------------------------------
class MadeUp:
    """A contender whose calls take what is said, and who counts them."""

    def __init__(self, name: str, seconds: Iterator[float]) -> None:
        self.calls = 0
        self.checked: list[int] = []
        self._seconds = seconds
        self.contender = Contender(name=name, run=self._run, check=self.checked.append)

    def _run(self, calls: int) -> Sequence[float]:
        self.calls += calls
        return [next(self._seconds) for _ in range(calls)]


def test_a_check_learns_of_every_call_also_of_those_that_were_not_counted() -> None:
    fast, slow = MadeUp("fast", itertools.repeat(1e-6)), MadeUp("slow", itertools.repeat(0.5))
    time_in_turns([fast.contender, slow.contender], budget_s=0.001)
    assert (fast.checked, slow.checked) == ([fast.calls], [slow.calls])
    assert fast.calls > 0


def test_ratios_are_of_neighbours_in_a_turn_so_drift_cancels() -> None:
    drift = (1.0, 5.0, 0.2, 3.0)
    timings = {
        name: Timing(latency_s=0.0, sustained_s=0.0, turns_s=tuple(seconds * factor for factor in drift))
        for name, seconds in (("ours", 2.0), ("limit", 1.0))
    }
    assert ratio(timings, "ours", "limit") == Spread(median=2.0, low=2.0, high=2.0)
    assert difference(timings, "ours", "limit").median == 2.0


def test_a_spread_is_the_middle_half() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert Spread.of([7.0]) == Spread(median=7.0, low=7.0, high=7.0)


def test_contenders_of_one_name_are_refused() -> None:
    both = [MadeUp("same", itertools.repeat(1.0)).contender for _ in range(2)]
    with pytest.raises(ValueError, match="one name"):
        time_in_turns(both, budget_s=0.001)


def test_a_wrong_answer_ends_the_measurement() -> None:
    def check(calls: int) -> None:
        raise WrongAnswer("nothing was done")

    lazy = Contender(name="lazy", run=lambda calls: [1e-6] * calls, check=check)
    with pytest.raises(WrongAnswer, match="nothing was done"):
        time_in_turns([lazy], budget_s=0.001)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("call", ["push_pull", "push", "pull"])
def test_an_exchange_is_measured_and_its_answer_checked(transport: str, call: str) -> None:
    with push_pull(TINY, "async-apply", transport, call=call) as contender:
        assert len(contender.pids) == 1
        assert len(contender.run(4)) == 4
        contender.check(4)


def test_calls_that_were_not_made_are_noticed() -> None:
    with push_pull(TINY, "async-lockfree", "shm") as contender:
        contender.run(3)
        with pytest.raises(WrongAnswer, match="after 4 steps the server should hold -2"):
            contender.check(4)


@pytest.mark.parametrize("limit", [loopback, unix_socket, sgd_on_two_cores, python_layer])
def test_a_limit_does_what_it_says(limit: Any) -> None:
    with limit(TINY) as contender:
        assert len(contender.run(3)) == 3
        contender.check(3)


# ---- what bounds an exchange -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("transport", "changed", "bound"),
    [
        ("shm", {"update_s": 0.5}, UPDATE),
        ("shm", {"copy_s": 0.3}, COPYING),
        ("shm", {"small_s": 0.8}, WAKING),
        ("tcp", {"sockets_s": 0.7}, SOCKETS),
    ],
)
def test_the_largest_part_is_what_bounds_an_exchange(transport: str, changed: dict[str, float], bound: str) -> None:
    parts = {"copy_s": 0.01, "update_s": 0.02, "sockets_s": 0.03, "small_s": 0.04, "python_s": 0.001, **changed}
    explanation = explain(transport, 1.0, **parts)
    assert explanation.bound == bound
    assert sum(explanation.shares.values()) < 1
    assert f"% {bound}" in explanation.in_words
    assert "the other" in explanation.in_words


def test_where_little_is_explained_nothing_is_blamed() -> None:
    explanation = explain("shm", 1.0, copy_s=0.1, update_s=0.1, sockets_s=0.0, small_s=0.01, python_s=0.001)
    assert explanation.bound == WAITING
    assert "What bounds it: none of these but waiting" in explanation.in_words


# ---- groups and rivals -----------------------------------------------------------------------------------------------
def test_no_two_contenders_of_a_group_share_a_name(bench: dict[str, ModuleType]) -> None:
    groups = bench["groups"].GROUPS
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        names = [entry.name for entry in group.entries]
        assert len(set(names)) == len(names), group.name


def test_every_rival_has_its_file(bench: dict[str, ModuleType]) -> None:
    for rival in bench["rivals"].RIVALS:
        module, _, function = rival.place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


# ---- the report ------------------------------------------------------------------------------------------------------
def made_up_results(bench: dict[str, ModuleType]) -> dict[str, Any]:
    """Every group with its contenders, the first of which is three times as fast as the others."""
    targets = bench["targets"]
    rivals = {"torch-rpc": targets.TORCH_RPC, "tensorflow-pipelined": targets.TENSORFLOW}
    parts: dict[str, Any] = {}
    for group in bench["groups"].GROUPS:
        names = [rivals.get(entry.name, entry.name) for entry in group.entries]
        seconds = [0.001, *([0.003] * (len(names) - 1))]
        parts[group.name] = {
            "size": group.size,
            "missing": {"other": "not installed"},
            "timings": {
                name: {"latency_s": s, "sustained_s": s, "turns_s": [s, 2 * s, s]}
                for name, s in zip(names, seconds, strict=True)
            },
        }
    parts["workers"] = {s.name: {"per_s": [100.0], "slowest_share": [0.9]} for s in bench["many_workers"].SETTINGS}
    parts["costs"] = {
        "exchange_processor_s": {"async-apply shm": 0.001},
        "alexnet_step_s": 0.1,
        "idle_share": 0.0001,
        "server_memory_bytes": {"async-apply alexnet": [1, 2]},
    }
    parts["stores"] = {"failed": "FileNotFoundError: not built"}
    machine = {"processor": "none", "cores": 2, "memory_bytes": 2**34, "system": "Linux"}
    about = {"date": "2020-01-02", "machine": machine, "versions": {"python": "3"}, "seconds": 60, "share": 1.0}
    return {"about": about, "parts": parts}


def test_a_doors_cost_is_what_is_left_of_a_turn_without_the_step_and_the_exchange(
    bench: dict[str, ModuleType],
) -> None:
    doors = bench["doors"]
    turns = {doors.WITH: (5.0, 9.0, 50.0), doors.WITHOUT: (1.0, 2.0, 3.0), doors.BARE: (3.0, 5.0, 4.0)}
    timings = {
        name: Timing(latency_s=0.0, sustained_s=0.0, turns_s=tuple(ms / 1e3 for ms in taken))
        for name, taken in turns.items()
    }
    assert doors.cost(timings).median == pytest.approx(2e-3)  # of 1, 2 and 43: a busy moment is not the door's
    assert doors.cost({name: timings[name] for name in (doors.WITH, doors.BARE)}) is None
    assert doors.cost_over_hand(timings) is None


def test_every_door_has_steps_and_a_name_of_its_own(bench: dict[str, ModuleType]) -> None:
    doors = bench["doors"]
    assert [door.name for door in doors.DOORS] == list(doors.STEPS)


def test_a_door_is_measured_in_a_process_of_its_own(bench: dict[str, ModuleType]) -> None:
    doors = bench["doors"]
    door = doors.DOORS[0]
    if door.missing:
        pytest.skip(f"{door.missing} is not installed")
    timings = doors.measure(door, share=0.01)
    assert set(timings) == {doors.WITH, doors.WITHOUT, doors.OWN, doors.BARE, doors.BY_HAND}
    assert doors.cost(timings) is not None


def test_targets_are_reached_short_or_not_measured(bench: dict[str, ModuleType]) -> None:
    rows = {row.what: row for row in bench["targets"].rows(made_up_results(bench))}
    copied = rows["shared memory, copied pull, AlexNet, async-apply / SGD in place"]
    assert (copied.measured_text, copied.verdict) == ("1.00 ×", "reached")
    assert rows["processor time of an exchange, both ends, async-apply shm / that of an AlexNet step"].verdict == (
        "short: 2.0 times the bound"
    )
    assert rows["torch RPC / async-apply over shared memory, AlexNet"].verdict == "short by 87.5 %"
    assert rows["lock-free store, one writer / the plain kernel"].verdict == "not measured in this run"
    assert rows["2 to 16 workers, async-apply shm: the slowest worker / the mean"].verdict == "reached"


def test_the_report_rewrites_its_part_of_the_page_and_no_other(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    report, page, results = bench["report"], tmp_path / "docs" / "page.md", tmp_path / "docs" / "bench" / "results.json"
    page.parent.mkdir()
    page.write_text(f"# Mine\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    measured = made_up_results(bench)
    report.write(measured, results, page)
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n")
    assert text.endswith(f"{report.END}\n\nafter\n")
    assert "old" not in text
    assert "2020-01-02" in text
    assert "![Rivals in the same run](bench/rivals.png)" in text
    assert "other (not installed)" in text
    assert "stores: FileNotFoundError: not built" in text
    assert {file.name for file in results.parent.iterdir()} == {
        "results.json",
        "rivals.png",
        "semantics.png",
        "workers.png",
    }
    assert report.read(results) == measured
    report.write(report.read(results), results, page)
    assert page.read_text() == text


def test_a_page_without_markers_gets_them_at_its_end(bench: dict[str, ModuleType]) -> None:
    report = bench["report"]
    assert report.replaced("# Mine\n", "new") == f"# Mine\n\n{report.BEGIN}\nnew\n{report.END}\n"
    with pytest.raises(ValueError, match="not known"):
        report.replaced(f"# Mine\n{report.BEGIN}\n", "new")
