"""An interrupted run goes on: from its checkpoint, with its own settings, and with records that tell one story."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorboardX")

import distnet
from distnet.alexnet.job import interrupted
from distnet.alexnet.job.agreement import Agreement, disagreements
from distnet.alexnet.job.config import TrainConfig, write_config_file
from distnet.alexnet.job.folder import RunFolder
from distnet.alexnet.job.interrupted import config_to_resume, point_at
from distnet.alexnet.place import Place, steps_done
from distnet.errors import ConfigError

PLACE = Place(step=3, steps=10, workers=2, batch_size=16, images=1000, seed=1, recipe="default", semantics="sync")


# ---- a worker's place --------------------------------------------------------------------------------------------
def test_a_place_comes_back_as_it_was_and_fits_a_push() -> None:
    assert Place.from_bytes(PLACE.to_bytes()) == PLACE
    assert len(PLACE.to_bytes()) < 1024
    start = dataclasses.replace(PLACE, step=0)
    assert steps_done(PLACE.to_bytes(), start) == 3
    assert steps_done(None, start) == 0
    assert steps_done(PLACE.to_bytes(), dataclasses.replace(start, steps=20)) == 3, "longer is allowed"


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b'{"step": 1}', PLACE.to_bytes().replace(b"3", b"-3")])
def test_bytes_that_are_no_place_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not the place of an AlexNet worker"):
        Place.from_bytes(data)


@pytest.mark.parametrize("change", [{"workers": 3}, {"batch_size": 8}, {"images": 9}, {"seed": 2}, {"recipe": "x"}])
def test_a_place_in_other_data_is_refused_by_the_setting(change: dict[str, Any]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=f"with {name} {getattr(PLACE, name)!r}.*started with {value!r}"):
        steps_done(PLACE.to_bytes(), dataclasses.replace(PLACE, **change))


def test_a_worker_that_was_started_for_another_job_is_told_by_each_setting() -> None:
    config = TrainConfig(semantics="sync", epochs=0.32, batch_size=16)  # 20 steps of 1,000 images
    assert disagreements(config, 1000, {0: PLACE, 1: PLACE}) == []
    others = {
        0: dataclasses.replace(PLACE, workers=3, semantics="async-apply"),
        1: dataclasses.replace(PLACE, steps=20),
    }
    assert disagreements(config, 1000, others) == [
        "worker 0 was started for --workers 3, this server for --workers 2: start both with the same",
        "worker 0 was started for --semantics async-apply, this server for --semantics sync: start both with the same",
        "worker 1 was started for --epochs 0.64, this server for --epochs 0.32: start both with the same",
    ]


def test_a_server_hears_once_what_each_worker_was_started_for() -> None:
    config = TrainConfig(semantics="sync", workers=1, epochs=0.16, batch_size=16)
    with distnet.ParameterServer({"w": np.zeros(4, np.float32)}, semantics="sync", workers=1) as server:
        agreement = Agreement(server, config, 1000)
        with distnet.connect(server.address, rank=0) as client:
            assert agreement.look(server.stats()) == [], "it has not pushed yet"
            client.save_with(PLACE.to_bytes())
            client.push_pull({"w": np.ones(4, np.float32)})
            assert agreement.look(server.stats()) == [
                "worker 0 was started for --workers 2, this server for --workers 1: start both with the same"
            ]
            assert agreement.look(server.stats()) == []
        with distnet.connect(server.address, rank=0) as other:
            other.save_with(b"another script's")
            other.push_pull({"w": np.ones(4, np.float32)})
            assert agreement.look(server.stats()) == []


# ---- the run's folder --------------------------------------------------------------------------------------------
def a_record(kind: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, **values}


RECORDS = [
    a_record("worker", rank=0, step=1, time_s=10.0),
    a_record("worker", rank=1, step=3, time_s=12.0),
    a_record("server", updates=3),
    a_record("evaluation", examples=64),
    a_record("resumed", examples=64),
    a_record("worker", rank=0, step=3, time_s=100.0),
    a_record("worker", rank=0, step=4, time_s=105.0),
    a_record("server", updates=4),
    a_record("evaluation", examples=128),
]


def test_what_was_recorded_after_the_checkpoint_is_cut() -> None:
    point = point_at(Path("x"), 3, {0: 3, 1: 3}, RECORDS, examples=96)
    assert point.records == RECORDS[:6]
    assert point.cut == 3
    assert point.seconds() == 2.0, "the time between two starts is no training"
    assert point_at(Path("x"), 4, {0: 4, 1: 3}, RECORDS, examples=128).seconds() == 7.0


def an_interrupted_run(path: Path, config: TrainConfig) -> None:
    with RunFolder(path, config) as folder:
        folder.record("server", {"updates": 1}, step=1)
        for examples, seconds in ((10, 0.5), (30, 1.25)):
            folder.keep_to_score({"w": np.ones(2, np.float32)}, examples=examples, seconds=seconds)
        (folder.scratch / "leftover").write_text("of a worker")


def test_a_resumed_folder_is_added_to_and_has_what_waits_to_be_scored(tmp_path: Path) -> None:
    config = TrainConfig(steps=4)
    an_interrupted_run(tmp_path, config)
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "server", "upd')  # the launcher was killed there
    records = interrupted._records(tmp_path / "metrics.jsonl")
    assert [record["kind"] for record in records] == ["server"]
    with RunFolder(tmp_path, config, resumed=records) as folder:
        with pytest.raises(ConfigError, match="another process is training"):
            RunFolder(tmp_path, config, resumed=records)
        waiting = folder.waiting_to_be_scored(at_most_examples=20)
        assert waiting == [(tmp_path / "scratch" / "10-0.500.npz", 10, 0.5)]
        assert [path.name for path in folder.scratch.iterdir()] == ["10-0.500.npz"]
        folder.record("resumed", {"examples": 20}, step=1)
        folder.summary({})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["server", "resumed"]
    assert not (tmp_path / "scratch").exists()


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        config_to_resume(tmp_path, {})
    config = TrainConfig(semantics="sync", steps=4)
    write_config_file(tmp_path / "config.toml", config)
    assert config_to_resume(tmp_path, {"epochs": None}) == config
    assert config_to_resume(tmp_path, {"timeout": 90.0}).timeout == 90.0
    with pytest.raises(ConfigError, match="leave out --batch-size, --steps"):
        config_to_resume(tmp_path, {"batch_size": 8, "steps": 9})
    write_config_file(tmp_path / "config.toml", TrainConfig(semantics="local", workers=1))
    with pytest.raises(ConfigError, match=r"is the baseline .* cannot be resumed"):
        config_to_resume(tmp_path, {})
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="has finished; there is nothing to resume"):
        config_to_resume(tmp_path, {})


def test_a_folder_without_a_run_cannot_be_scored(tmp_path: Path) -> None:
    pytest.importorskip("distnet.checkpoint")
    from distnet.alexnet.job.scoring import score

    with pytest.raises(ConfigError, match="there is no checkpoint in"):
        score(tmp_path)
    with pytest.raises(ConfigError, match="there is no checkpoint in"):
        score(tmp_path / "nowhere")
