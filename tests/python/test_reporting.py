"""Reports: tables, plots and pages say what the runs' summaries say, and refer to nothing outside themselves."""

from __future__ import annotations

import html.parser
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from distnet._private.quantities import show_bytes, show_seconds
from distnet.alexnet.job.comparing import ALL_CORES, ONE_WORKER
from distnet.alexnet.job.display import PlainDisplay
from distnet.alexnet.job.progress import JobProgress, WorkerProgress
from distnet.alexnet.report.comparison import compare_runs
from distnet.alexnet.report.html import html_report
from distnet.alexnet.report.reaching import cells, headings, time_to_accuracy
from distnet.alexnet.report.table import HEADINGS, markdown_table, terminal_table
from distnet.alexnet.report.text import run_summary

SEMANTICS = ("sync", "async-apply", "async-locked", "async-lockfree", "async-sharded")


def a_summary(semantics: str, *, seed: int, rate: float, accuracy: float | None, threads: int = 1) -> dict[str, Any]:
    """Return a summary as a run of three epochs leaves it."""
    local = semantics == "local"
    counts = {"0": 1000} if semantics in ("sync", "local") else {"0": 50, "1": 900, "2": 45, "3": 5}
    epochs = () if accuracy is None else ((1, 0.7 * accuracy), (2, 0.9 * accuracy), (3, accuracy))
    evaluations = [
        {"examples": 50_000 * epoch, "epochs": epoch, "seconds": 50_000 * epoch / rate, "accuracy": score, "loss": 1.0}
        for epoch, score in epochs
    ]
    return {
        "accuracy": accuracy,
        "loss": 1.0,
        "seconds": 150_000 / rate,
        "examples_per_s": rate,
        "examples": 150_000,
        "epochs": 3.0,
        "updates": 586 if semantics == "sync" else 1172,
        "effective_batch": 256 if semantics == "sync" else 128,
        "rate_rule": f"rule of {semantics}",
        "staleness": {"mean": 1.0, "p50": 1, "p90": 1, "p99": 2, "max": 3, "counts": counts},
        "bytes_received": 0 if local else 5_000_000_000,
        "bytes_sent": 0 if local else 5_000_000_000,
        "transport": "none" if local else "shm",
        "server": {} if local else {"updates": 1172},
        "evaluations": evaluations,
        "data": {"name": "cifar10", "train_examples": 50_000, "test_examples": 10_000},
        "threads_per_worker": threads,
        "config": {"semantics": semantics, "workers": 1 if local else 2, "seed": seed},
        "machine": {"processor": "A <processor> & more", "cores": 2, "memory_bytes": 8 << 30, "system": "Linux"},
        "versions": {"python": "3.11.7", "distnet": "0.1.0"},
    }


def some_runs(seeds: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Return summaries of both baselines and all five semantics."""
    noise = random.Random(1)
    runs = {
        ALL_CORES: [a_summary("local", seed=s, rate=1200.0, accuracy=0.62, threads=2) for s in range(seeds)],
        ONE_WORKER: [a_summary("local", seed=s, rate=800.0, accuracy=0.61) for s in range(seeds)],
    }
    for name in SEMANTICS:
        runs[name] = [
            a_summary(name, seed=s, rate=1600.0 + noise.uniform(-40, 40), accuracy=0.6 + noise.uniform(-0.02, 0.02))
            for s in range(seeds)
        ]
    return runs


def a_comparison(seeds: int = 2) -> dict[str, Any]:
    """Return the comparison of ``some_runs``."""
    return compare_runs(some_runs(seeds), all_cores=ALL_CORES, one_worker=ONE_WORKER)


class _Page(html.parser.HTMLParser):
    """Collects tags, and everything that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_speed_ups_are_ratios_to_both_baselines() -> None:
    runs = {
        ALL_CORES: [a_summary("local", seed=0, rate=1000.0, accuracy=0.5)],
        ONE_WORKER: [a_summary("local", seed=0, rate=500.0, accuracy=0.5)],
        "sync": [a_summary("sync", seed=0, rate=900.0, accuracy=0.48)],
    }
    row = compare_runs(runs, all_cores=ALL_CORES, one_worker=ONE_WORKER)["rows"][2]
    assert (row["speedup_all_cores"], row["speedup_one_worker"]) == (0.9, 1.8)
    assert row["accuracy_less_baseline"] == pytest.approx(-0.02)
    assert (row["updates"], row["effective_batch"], row["rate_rule"]) == (586, 256, "rule of sync")


def test_means_are_over_the_seeds_and_staleness_adds_up() -> None:
    runs = {
        "async-apply": [a_summary("async-apply", seed=s, rate=100.0 * (s + 1), accuracy=0.5 + s / 10) for s in (0, 1)]
    }
    (row,) = compare_runs(runs, all_cores=ALL_CORES, one_worker=ONE_WORKER)["rows"]
    assert row["examples_per_s"] == {"mean": 150.0, "min": 100.0, "max": 200.0, "values": [100.0, 200.0]}
    assert row["accuracy"]["mean"] == pytest.approx(0.55)
    assert row["staleness"]["counts"] == {"0": 100, "1": 1800, "2": 90, "3": 10}
    assert row["speedup_all_cores"] is None


def rates_of(rates: dict[str, list[float]]) -> dict[str, list[dict[str, Any]]]:
    """Return runs with those examples a second, seed by seed, one after another."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for index, (name, own) in enumerate(rates.items()):
        semantics = "local" if name in (ALL_CORES, ONE_WORKER) else name
        threads = 2 if name == ALL_CORES else 1
        runs[name] = [a_summary(semantics, seed=s, rate=r, accuracy=0.5, threads=threads) for s, r in enumerate(own)]
        for seed, run in enumerate(runs[name]):
            run["started"] = 10_000.0 * seed + 100.0 * index
            run["ended"] = run["started"] + 90.0
    return runs


def compared(rates: dict[str, list[float]], late: tuple[str, int] | None = None) -> dict[str, Any]:
    """Return the comparison of such runs; one of them may have been measured a day later."""
    runs = rates_of(rates)
    if late is not None:
        runs[late[0]][late[1]]["started"] += 86_400.0
        runs[late[0]][late[1]]["ended"] += 86_400.0
    return compare_runs(runs, all_cores=ALL_CORES, one_worker=ONE_WORKER)


STEADY = {ALL_CORES: [1200.0, 1210.0, 1205.0], ONE_WORKER: [800.0, 805.0, 802.0]}


def test_a_steady_speed_up_is_claimed_with_its_interval() -> None:
    comparison = compared({**STEADY, "sync": [1440.0, 1452.0, 1446.0], "async-apply": [1560.0, 1573.0, 1566.0]})
    row = comparison["rows"][3]
    low, high = row["speedup_one_worker_interval"]
    assert 1.93 < low < row["speedup_one_worker"] < high < 1.97
    assert row["speedup_one_worker_doubts"] == []
    assert comparison["fastest"] == ["async-apply"]
    assert "1.95 ± 0.00 ×" in markdown_table(comparison)
    assert "async-apply was the fastest: 1,566 examples per second with 2 workers, 1.95 (" in html_report(
        comparison, {}
    )
    assert "Uncertain" not in markdown_table(comparison)


def test_what_the_noise_can_explain_is_not_claimed() -> None:
    noisy = {
        ALL_CORES: [1200.0, 1000.0],
        ONE_WORKER: [800.0, 900.0],
        "sync": [1500.0, 1100.0],
        "async-apply": [1300.0] * 2,
    }
    comparison = compared(noisy)
    assert comparison["fastest"] == ["sync", "async-apply"]
    assert "sync and async-apply were the fastest" in html_report(comparison, {})
    (doubt,) = comparison["rows"][2]["speedup_one_worker_doubts"]
    assert doubt.startswith("the interval is wide, ")
    assert "1.53? ×" in markdown_table(comparison)
    assert f"- sync against {ONE_WORKER}: the interval is wide, " in markdown_table(comparison)


def test_more_than_the_workers_can_give_is_not_claimed() -> None:
    comparison = compared({**STEADY, "sync": [2720.0, 2735.0, 2728.0]})
    (doubt,) = comparison["rows"][2]["speedup_one_worker_doubts"]
    assert doubt == (
        "3.40 times is more than 2 workers can give: it is noise, or the baseline was measured in a slower moment"
    )
    assert "3.40? ×" in terminal_table(comparison)
    assert "3.40 (" not in html_report(comparison, {})


def test_a_baseline_that_was_measured_at_another_time_is_said() -> None:
    comparison = compared({**STEADY, "sync": [1440.0, 1452.0, 1446.0]}, late=(ONE_WORKER, 1))
    row = comparison["rows"][2]
    assert row["speedup_one_worker_doubts"] == ["the baseline was measured at another time"]
    assert row["speedup_all_cores_doubts"] == []


def test_one_seed_is_one_measurement_and_nothing_is_claimed() -> None:
    comparison = compared({name: rates[:1] for name, rates in STEADY.items()} | {"sync": [1500.0]})
    assert comparison["fastest"] == []
    assert comparison["rows"][2]["speedup_one_worker_interval"] is None
    text, page = markdown_table(comparison), html_report(comparison, {})
    assert text.count("is one measurement") == page.count("is one measurement") == 1
    assert "1.88? ×" in text
    assert "the fastest" not in page


def runs_with(scores: dict[str, list[list[float]]]) -> dict[str, list[dict[str, Any]]]:
    """Return runs at 1,000 examples a second (the baselines: 500), evaluated so after every epoch."""
    runs = {}
    for name, seeds in scores.items():
        local = name in (ALL_CORES, ONE_WORKER)
        runs[name] = [
            a_summary("local" if local else name, seed=s, rate=500.0 if local else 1000.0, accuracy=own[-1])
            for s, own in enumerate(seeds)
        ]
        for run, own in zip(runs[name], seeds, strict=True):
            run["evaluations"] = [
                {
                    "examples": 50_000 * epoch,
                    "epochs": float(epoch),
                    "seconds": 50_000 * epoch / run["examples_per_s"],
                    "accuracy": score,
                    "loss": 1.0,
                }
                for epoch, score in enumerate(own, start=1)
            ]
    return runs


def reaching(scores: dict[str, list[list[float]]], rates: dict[str, float] | None = None) -> dict[str, Any]:
    """Return when such runs reached the marks."""
    rows = compare_runs(runs_with(scores), all_cores=ALL_CORES, one_worker=ONE_WORKER)["rows"]
    return time_to_accuracy(rows, one_worker=ONE_WORKER, rates=rates)


def test_the_marks_are_the_last_round_ones_and_half_a_point_below_the_baselines_best() -> None:
    assert reaching({ONE_WORKER: [[0.6, 0.81, 0.805]]})["marks"] == [0.7, 0.75, 0.8, 0.805]
    assert reaching({ONE_WORKER: [[0.6, 0.802]], "sync": [[0.9]]})["marks"] == [0.65, 0.7, 0.75, 0.797]
    assert reaching({ONE_WORKER: [[0.6, 0.805]]})["marks"] == [0.7, 0.75, 0.8], "two marks fall together"
    assert reaching({ONE_WORKER: [[0.2], [0.22]]})["marks"] == [0.1, 0.15, 0.2, 0.205], "the mean of the seeds' bests"
    assert reaching({"sync": [[0.31]]})["marks"] == [0.2, 0.25, 0.3, 0.305], "of what there is, without a baseline"
    assert reaching({ONE_WORKER: [[0.04]]})["marks"] == [0.035]


def test_an_accuracy_is_reached_at_the_first_evaluation_that_has_it() -> None:
    found = reaching({ONE_WORKER: [[0.69, 0.70, 0.80, 0.79]], "sync": [[0.72, 0.69, 0.71, 0.78]]})
    assert found["marks"] == [0.65, 0.7, 0.75, 0.795]
    baseline, sync = found["rows"]
    assert [reached["epochs"] for reached in baseline["reached"]] == [1, 2, 3, 3]
    assert [reached["seconds"] for reached in baseline["reached"]] == [100, 200, 300, 300]
    assert [reached["speedup"] for reached in baseline["reached"]] == [1, 1, 1, 1]
    assert [reached and reached["epochs"] for reached in sync["reached"]] == [1, 1, 4, None]
    assert [reached and reached["speedup"] for reached in sync["reached"]] == [2, 4, 1.5, None]
    assert (sync["best"], sync["final"]) == (0.78, 0.78)
    assert (baseline["best"], baseline["final"]) == (0.8, 0.79)
    assert cells(found)[1][-2:] == ["4.0 epochs, 200 s, 1.50? ×", "–"]


def test_times_are_medians_over_the_seeds_and_need_all_of_them() -> None:
    found = reaching({ONE_WORKER: [[0.7, 0.76]], "sync": [[0.7, 0.76], [0.7, 0.7], [0.5, 0.5, 0.6, 0.7]]})
    assert found["marks"] == [0.65, 0.7, 0.75, 0.755]
    first, second, *others = found["rows"][1]["reached"]
    assert (first["epochs"], first["fewest_epochs"], first["most_epochs"], first["seconds"]) == (1, 1, 4, 50)
    assert (second, others) == (first, [None, None])
    assert cells(found)[1][3] == "1.0 epochs (1.0 to 4.0), 50 s, 2.00? ×"


def test_marks_can_be_given() -> None:
    rows = compare_runs(runs_with({"sync": [[0.5, 0.6]]}), all_cores=ALL_CORES, one_worker=ONE_WORKER)["rows"]
    found = time_to_accuracy(rows, one_worker=ONE_WORKER, marks=(0.5, 0.55, 0.7))
    assert found["marks"] == [0.5, 0.55, 0.7]
    assert [reached and reached["epochs"] for reached in found["rows"][0]["reached"]] == [1, 2, None]
    assert time_to_accuracy([], one_worker=ONE_WORKER, marks=(0.5,))["marks"] == []


def test_a_baseline_that_did_not_train_needs_the_others_epochs_at_its_own_rate() -> None:
    scores = {ONE_WORKER: [[0.7, 0.8]], "sync": [[0.8, 0.8]]}
    rates = {ALL_CORES: 4000.0, ONE_WORKER: 2000.0, "sync": 5000.0}
    comparison = compare_runs(
        runs_with(scores), all_cores=ALL_CORES, one_worker=ONE_WORKER, rates=rates, marks=(0.7, 0.8)
    )
    sync = comparison["time_to_accuracy"]["rows"][1]["reached"]
    assert [(reached["seconds"], reached["speedup"], reached["speedup_all_cores"]) for reached in sync] == [
        (10, 2.5, 1.25),
        (10, 5, 2.5),
    ]
    assert cells(comparison["time_to_accuracy"])[1][-1] == "1.0 epochs, 10 s, 5.00? / 2.50? ×"


def test_rates_measured_elsewhere_stand_for_those_of_the_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from distnet.alexnet.report.plots import plot_comparison

    rates = {ALL_CORES: 1500.0, ONE_WORKER: 1000.0, "sync": 1800.0}
    why = "These ran beside other jobs."
    comparison = compare_runs(some_runs(), all_cores=ALL_CORES, one_worker=ONE_WORKER, unfair_seconds=why, rates=rates)
    rows = {row["name"]: row for row in comparison["rows"]}
    assert rows["sync"]["examples_per_s"]["values"] == [1800.0]
    assert (rows["sync"]["speedup_all_cores"], rows["sync"]["speedup_one_worker"]) == (1.2, 1.8)
    assert [result["seconds"] for result in rows["sync"]["evaluations"][0]] == [27.778, 55.556, 83.333]
    assert rows["async-apply"]["examples_per_s"]["mean"] is None
    assert rows["async-apply"]["speedup_one_worker"] is None
    assert markdown_table(comparison).splitlines()[2] == why
    assert list(plot_comparison(tmp_path, comparison)) == list(plot_comparison(tmp_path, a_comparison()))


def test_seconds_can_come_from_rates_measured_elsewhere() -> None:
    scores = {ALL_CORES: [[0.7, 0.8]], ONE_WORKER: [[0.7, 0.8]], "sync": [[0.5, 0.8]], "async-apply": [[0.8, 0.8]]}
    found = reaching(scores, {ONE_WORKER: 2000.0, "sync": 4000.0})
    last = {row["name"]: row["reached"][-1] for row in found["rows"]}
    assert (last[ONE_WORKER]["seconds"], last["sync"]["seconds"]) == (50, 25)
    assert (last["sync"]["speedup"], last["async-apply"]["seconds"]) == (2, None)
    assert cells(found)[3][-1] == "1.0 epochs"
    assert found["reference"] == ONE_WORKER


def test_the_first_baseline_is_the_measure_where_one_worker_has_all_cores() -> None:
    found = reaching({ALL_CORES: [[0.7, 0.8]], "sync": [[0.7, 0.8]]})
    assert found["reference"] == ALL_CORES
    assert found["rows"][1]["reached"][-1]["speedup"] == 2
    alone = reaching({"sync": [[0.7, 0.8]]})
    assert (alone["reference"], alone["rows"][0]["reached"][-1]["speedup"]) == (None, None)


def test_what_was_not_evaluated_has_no_time_to_accuracy() -> None:
    comparison = compare_runs(
        {"sync": [a_summary("sync", seed=0, rate=900.0, accuracy=None)]}, all_cores=ALL_CORES, one_worker=ONE_WORKER
    )
    assert comparison["time_to_accuracy"]["marks"] == []
    assert "Time to accuracy" not in markdown_table(comparison)


def test_a_comparison_is_plain_json() -> None:
    assert json.loads(json.dumps(a_comparison()))["rows"][0]["name"] == ALL_CORES


def test_the_markdown_table_has_a_cell_for_every_heading() -> None:
    lines = [line for line in markdown_table(a_comparison()).splitlines() if line.startswith("|")]
    results, reaching = lines[:9], lines[9:]
    assert {line.count("|") for line in results} == {len(HEADINGS) + 1}
    assert len(reaching) == 2 + 7
    assert {line.count("|") for line in reaching} == {len(headings(a_comparison()["time_to_accuracy"])) + 1}
    assert "rule of async-sharded" in markdown_table(a_comparison())


def test_the_terminal_table_lines_up() -> None:
    lines = terminal_table(a_comparison()).splitlines()
    assert len(lines) == 2 + 7
    assert lines[0].startswith("training")
    assert lines[-1].startswith("async-sharded")


def test_runs_without_evaluation_have_no_accuracy_and_no_error() -> None:
    runs = {"sync": [a_summary("sync", seed=0, rate=900.0, accuracy=None)]}
    comparison = compare_runs(runs, all_cores=ALL_CORES, one_worker=ONE_WORKER)
    assert comparison["rows"][0]["accuracy"]["mean"] is None
    assert "–" in markdown_table(comparison)


def test_the_report_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from distnet.alexnet.report.plots import plot_comparison

    comparison = a_comparison()
    plots = plot_comparison(tmp_path, comparison)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots.values())
    text = html_report(comparison, plots)
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(page.references) == len(plots) == 4
    headings = [line for line in text.splitlines() if line.startswith("<h2>")]
    assert not [name for name in plots if f"<h2>{name}</h2>" in headings], "a plot has its title in it"
    assert "max-width: 100%" in text
    assert text.count("<table") == text.count('<div class="scroll"><table'), "a wide table scrolls by itself"
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    without_plots = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "//" not in without_plots
    assert "url(" not in without_plots
    assert "A <processor> & more" in "".join(page.text)


def test_unfair_seconds_are_said_first_and_not_compared(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from distnet.alexnet.report.plots import plot_comparison

    why = "These ran beside other jobs."
    comparison = compare_runs(some_runs(), all_cores=ALL_CORES, one_worker=ONE_WORKER, unfair_seconds=why)
    text = markdown_table(comparison)
    assert text.splitlines()[2] == why
    assert not re.search(r"\d\.\d+ ×", text)
    assert " s," not in text
    assert {row["examples_per_s"]["mean"] for row in comparison["rows"]} == {None}
    plots = plot_comparison(tmp_path, comparison)
    assert list(plots) == ["Accuracy over epochs", "Staleness"]
    page = html_report(comparison, plots)
    assert f'<p class="lead">{why}</p>' in page
    assert "the fastest" not in page


def test_a_comparison_of_one_way_and_one_seed_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from distnet.alexnet.report.plots import plot_comparison

    runs = {"sync": [a_summary("sync", seed=0, rate=900.0, accuracy=None)]}
    comparison = compare_runs(runs, all_cores=ALL_CORES, one_worker=ONE_WORKER)
    assert "no semantics" not in html_report(comparison, plot_comparison(tmp_path, comparison)).lower()[:10]


def test_a_run_is_drawn_from_its_own_records(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from distnet.alexnet.report.plots import plot_run

    records = [{"kind": "worker", "rank": r, "time_s": 10.0 + s, "loss": 2.0 / s} for s in (1, 2, 3) for r in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    path = plot_run(tmp_path, a_summary("sync", seed=0, rate=900.0, accuracy=0.5))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_run_in_words_names_its_folder_and_its_accuracy() -> None:
    words = run_summary(
        a_summary("async-apply", seed=0, rate=900.0, accuracy=0.5), Path("runs/x"), Path("runs/x/plot.png")
    )
    assert "50.00% of the test images" in words
    assert "5.0 GB of gradients in" in words
    assert "runs/x/plot.png" in words
    local = run_summary(a_summary("local", seed=0, rate=900.0, accuracy=None), Path("runs/x"))
    assert "one process, no server" in local
    assert "not evaluated" in local


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "–"), (0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_read_well(seconds: float | None, words: str) -> None:
    assert show_seconds(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (4_273_192, "4.3 MB"), (2e12, "2.0 TB")])
def test_bytes_read_well(count: float, words: str) -> None:
    assert show_bytes(count) == words


def test_without_a_terminal_the_display_is_plain_lines() -> None:
    class Lines(list[str]):
        def write(self, text: str) -> int:
            self.append(text)
            return len(text)

        def flush(self) -> None:
            pass

    lines = Lines()
    display = PlainDisplay(lines, every_s=0.0)  # type: ignore[arg-type]
    worker = WorkerProgress(0)
    job = JobProgress(title="", total_examples=100, workers=[worker])
    display.update(job)
    assert lines == []  # nothing to say yet
    record = {"step": 1, "examples": 25, "loss": 2.25, "staleness": 0, "staleness_counts": {"0": 1}}
    worker.record({**record, "time_s": 1.0, "computing_s": 0.1, "exchanging_s": 0.0})
    display.update(job)
    assert "25.0%" in lines[0]
    assert "loss 2.250" in lines[0]
