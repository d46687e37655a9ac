"""A comparison's runs: finished ones are kept and joined, one that was cut off starts anew, and choices see no test
images."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("rich")

from distnet.alexnet.job import comparing
from distnet.alexnet.job.comparing import ALL_CORES, ONE_WORKER, finished_runs, run_comparison, run_once, ways_to_train
from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.display import PlainDisplay
from distnet.alexnet.recipes import RECIPES
from distnet.data.cifar10 import TrainingData
from distnet.data.generated import generate
from distnet.errors import ConfigError

BENCH = Path(__file__).parents[2] / "bench"
CONFIG = TrainConfig(epochs=1, threads_per_worker=1)


@pytest.fixture
def bench() -> Iterator[dict[str, ModuleType]]:
    """The scripts of bench/ that train, which import one another by their bare names."""
    sys.path.insert(0, str(BENCH))
    try:
        yield {name: importlib.import_module(name) for name in ("long_run", "recipe_choice", "simulated_staleness")}
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The semantics and seeds that were trained, by a training that takes no time."""
    done: list[tuple[str, int]] = []

    def train(config: TrainConfig, path: Path, display: Any) -> dict[str, Any]:
        done.append((config.semantics, config.seed))
        assert not path.exists(), "what was cut off is removed before"
        path.mkdir(parents=True)
        (path / "config.toml").write_text("[train]\n")
        summary = {"config": config.to_mapping(), "accuracy": 0.5, "examples_per_s": 1000.0, "seconds_in_all": 1.0}
        (path / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(comparing, "train", train)
    return done


def test_a_finished_run_is_kept_and_one_that_was_cut_off_starts_anew(
    tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    (way,) = (way for way in ways_to_train(CONFIG) if way.name == "sync")
    display = PlainDisplay(io.StringIO())
    first = run_once(way, 1, tmp_path, display)
    assert run_once(way, 1, tmp_path, display) == first
    assert trained == [("sync", 1)]
    (tmp_path / "runs" / "sync-seed1" / "summary.json").unlink()
    assert run_once(way, 1, tmp_path, display) == first
    assert trained == [("sync", 1), ("sync", 1)]


def test_all_ways_take_turns_and_none_is_always_the_first(tmp_path: Path, trained: list[tuple[str, int]]) -> None:
    ways = [way for way in ways_to_train(CONFIG) if way.name in ("sync", "async-apply", "async-locked")]
    found = run_comparison(ways, (5, 6), tmp_path, PlainDisplay(io.StringIO()))
    assert trained == [
        ("sync", 5), ("async-apply", 5), ("async-locked", 5),
        ("async-apply", 6), ("async-locked", 6), ("sync", 6),
    ]  # fmt: skip
    assert [[run["config"]["seed"] for run in runs] for runs in found.values()] == [[5, 6]] * 3


def test_keras_is_one_way_more_beside_those_of_the_tensorflow_worker() -> None:
    ways = ways_to_train(dataclasses.replace(CONFIG, trainer="keras"))
    assert ways[:-1] == ways_to_train(CONFIG)
    assert (ways[-1].name, ways[-1].label) == ("async-lockfree, Keras", "async-lockfree-keras")
    assert ways[-1].config == dataclasses.replace(ways_to_train(CONFIG, ["async-lockfree"])[-1].config, trainer="keras")
    assert ways_to_train(dataclasses.replace(CONFIG, trainer="keras"), ["sync"])[-1].name == "sync, Keras"


def test_finished_runs_are_joined_by_way_and_rising_seed(tmp_path: Path, trained: list[tuple[str, int]]) -> None:
    ways = {way.name: way for way in ways_to_train(CONFIG)}
    for name, seed in (("sync", 10), ("sync", 2), ("async-apply", 1), ("async-apply", 3)):
        run_once(ways[name], seed, tmp_path, PlainDisplay(io.StringIO()))
    (tmp_path / "runs" / "async-apply-seed3" / "summary.json").unlink()
    found = finished_runs(list(ways.values()), tmp_path)
    assert {name: [run["config"]["seed"] for run in runs] for name, runs in found.items()} == {
        "sync": [2, 10],
        "async-apply": [1],
    }


def test_a_run_with_other_settings_is_not_joined(tmp_path: Path, trained: list[tuple[str, int]]) -> None:
    (way,) = (way for way in ways_to_train(CONFIG) if way.name == "sync")
    run_once(way, 1, tmp_path, PlainDisplay(io.StringIO()))
    (other,) = (way for way in ways_to_train(TrainConfig(epochs=2, threads_per_worker=1)) if way.name == "sync")
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        finished_runs([other], tmp_path)


def test_the_long_run_has_one_process_and_every_semantics_and_waits_an_hour(
    bench: dict[str, ModuleType], tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    ways = bench["long_run"].the_ways("generated", recipe="nesterov", epochs=40.0, precision="bfloat16")
    assert list(ways) == ["one-process", "sync", "async-apply", "async-locked", "async-lockfree", "async-sharded"]
    assert ways["one-process"].name == ONE_WORKER
    assert {way.config.timeout for way in ways.values()} == {3600.0}
    assert {way.config.threads_per_worker for way in ways.values()} == {1}
    bench["long_run"].train(ways, "async-lockfree", 3, tmp_path)
    assert trained == [("async-lockfree", 3)]
    with pytest.raises(SystemExit, match="'hogwild'; expected one of one-process, sync"):
        bench["long_run"].train(ways, "hogwild", 1, tmp_path)


def test_the_long_runs_report_takes_its_seconds_from_another_comparison(
    bench: dict[str, ModuleType], tmp_path: Path
) -> None:
    rows = [
        {"name": "sync", "examples_per_s": {"values": [2000.0, 2100.0, 10.0]}},  # the machine was busy once
        {"name": ALL_CORES, "examples_per_s": {"values": [9.5]}},
    ]
    (tmp_path / "compare.json").write_text(json.dumps({"rows": rows}))
    assert bench["long_run"].rates_of(tmp_path / "compare.json") == {"sync": 2000.0, ALL_CORES: 9.5}


def test_changes_to_a_recipe_are_numbers_and_pairs(bench: dict[str, ModuleType]) -> None:
    changes = bench["recipe_choice"].changes_of(
        ["learning_rate=0.1", "contrast=0.6,1.4", "batch_size=64", "nesterov=false"]
    )
    assert changes == {"learning_rate": 0.1, "contrast": (0.6, 1.4), "batch_size": 64, "nesterov": False}


@pytest.mark.slow
def test_a_recipe_is_scored_on_held_out_images_and_not_on_test_images(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow")
    seen: list[Any] = []

    def train(data: Any, recipe: Any, **settings: Any) -> Any:
        settings.pop("on_epoch")(1, 2.5)
        seen.append((data, recipe, settings))
        return argparse.Namespace(accuracy=0.25, loss=1.5)

    monkeypatch.setattr(bench["simulated_staleness"], "train", train)
    options = argparse.Namespace(
        data="generated", recipe="nesterov", epochs=0.5, delay=2, seed=3, threads=None, precision="float32"
    )
    result = bench["recipe_choice"].tried(options, {"learning_rate": 0.1})
    ((data, recipe, settings),) = seen
    assert len(data.test_images) == 5_000
    assert data.name.endswith("its last 5,000 training images held out")
    assert (recipe.learning_rate, recipe.batch_size) == (0.1, 32)
    assert settings == {"epochs": 0.5, "delay": 2, "seed": 3, "precision": "float32"}
    assert (result["accuracy"], result["changes"], result["delay"]) == (0.25, {"learning_rate": 0.1}, 2)
    assert (result["loss"], result["training_loss"]) == (1.5, 2.5)


@pytest.mark.slow
def test_training_with_late_gradients_tells_of_every_epoch(bench: dict[str, ModuleType]) -> None:
    pytest.importorskip("tensorflow")
    (images, labels), test = generate(seed=0, train_count=100, test_count=20)
    data = TrainingData(train_images=images, train_labels=labels, test_images=test[0], test_labels=test[1], name="few")
    recipe = dataclasses.replace(RECIPES["nesterov"], batch_size=16)
    told: list[tuple[int, float]] = []
    found = bench["simulated_staleness"].train(
        data, recipe, epochs=3, delay=2, seed=1, precision="float32", on_epoch=lambda *said: told.append(said)
    )
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert all(0 < loss < 5 for _, loss in told)
    assert found.examples == 20


def test_what_was_tried_is_a_table_with_the_best_first(bench: dict[str, ModuleType]) -> None:
    result = {"recipe": "nesterov", "changes": {}, "epochs": 10.0, "delay": 0, "seed": 1, "accuracy": 0.7, "loss": 0.9}
    better = {**result, "changes": {"contrast": [0.6, 1.4], "learning_rate": 0.1}, "accuracy": 0.71}
    assert bench["recipe_choice"].table_lines([result, better])[2:] == [
        "| nesterov, contrast 0.6 to 1.4, learning_rate 0.1 | 10 | 0 | 1 | 71.00% | 0.900 |",
        "| nesterov | 10 | 0 | 1 | 70.00% | 0.900 |",
    ]
