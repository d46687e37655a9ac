"""What is asked for and cannot be meant: settings, files, addresses and arguments are refused with what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distnet
from distnet._private.addresses import check_address
from distnet._private.suggestions import suggest
from distnet._private.waiting import Waiting
from distnet.alexnet.job.config import TrainConfig, write_config_file
from distnet.alexnet.job.folder import RunFolder
from distnet.alexnet.job.interrupted import config_to_resume
from distnet.checkpoint import CheckpointFolder, load
from distnet.cli.main import main
from distnet.cli.server_options import job_settings, make_server
from distnet.launch.start_line import start_line
from distnet.settings.job import JobSettings

MODEL = {"layer/kernel": np.ones(3, np.float32), "layer/bias": np.zeros(2, np.float32)}


# ---- the file of settings --------------------------------------------------------------------------------------------
def test_the_top_level_of_a_file_counts_beside_its_table(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('semantics = "sync"\n[job]\nworkers = 3\n')
    settings = job_settings(config_file=file)
    assert (settings.semantics, settings.workers) == ("sync", 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[job]\nworkers = 3\n[other]\nservers = 2\n", r"job.toml has a table \[other\]; expected settings in \[job\]"),
        ("workers = 2\n[job]\nworkers = 3\n", r"job.toml says workers at its top level and in \[job\]; say it once"),
        ("job = 3\n", "job.toml holds no table of settings"),
        ("worker = 3\n", "job.toml: no setting is named 'worker'; did you mean 'workers'?"),
        ("rate = 0.1\n", "job.toml: no setting is named 'rate'; did you mean 'learning_rate'?"),
        ("clip_norm = -1\n", "job.toml: clip_norm is -1; expected"),
    ],
)
def test_what_is_wrong_in_a_file_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(distnet.ConfigError, match=words):
        job_settings(config_file=file)


# ---- options ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_norm": -1.0}, "^--clip-norm is -1.0; expected"),
        ({"checkpoint": "kept", "checkpoint_every": "10"}, "^--checkpoint-every is '10'; expected"),
        ({"checkpoint_every": "5updates"}, "^--checkpoint-every 5updates without --checkpoint DIR"),
        ({"keep_checkpoints": 2}, "^--keep-checkpoints 2 without --checkpoint DIR"),
    ],
)
def test_what_is_wrong_is_named_as_it_was_given(options: dict[str, Any], words: str) -> None:
    with pytest.raises(distnet.ConfigError, match=words):
        job_settings(**options)


def test_the_name_of_the_default_optimizer_alone_is_the_default() -> None:
    unsaid = JobSettings().optimizer_from(distnet.SGD(0.01))
    assert JobSettings(optimizer="sgd").optimizer_from(distnet.SGD(0.01)) == unsaid
    assert JobSettings(optimizer="sgd(0.5)").optimizer_from(distnet.SGD(0.01)) == distnet.SGD(0.5)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("momentum", distnet.Momentum(distnet.CosineDecay(0.5, 100), 0.8)),
        ("momentum(momentum=0.7)", distnet.Momentum(distnet.CosineDecay(0.5, 100), 0.7)),
        ("momentum(0.2)", distnet.Momentum(0.2, 0.8)),
        ("adam(0.2)", distnet.Adam(0.2)),
    ],
)
def test_an_optimizer_of_the_checkpoints_kind_keeps_what_is_not_said(text: str, becomes: distnet.Optimizer) -> None:
    saved = {"optimizer": distnet.Momentum(distnet.CosineDecay(0.5, 100), 0.8)}
    filled = JobSettings(restore="kept", optimizer=text).filled_from(saved)
    assert filled.server_arguments()["optimizer"] == becomes


def test_what_another_system_calls_a_setting_is_understood() -> None:
    assert suggest("deadline", ["timeout", "round_timeout"]) == "; did you mean 'timeout' or 'round_timeout'?"
    assert suggest("deadline", ["replies", "round_timeout"]) == "; did you mean 'round_timeout'?"
    with pytest.raises(distnet.ConfigError, match=r"'async_apply'; did you mean 'async-apply'\?"):
        distnet.ParameterServer(semantics="async_apply")


def test_the_beginning_of_several_names_suggests_them_all() -> None:
    every = "'async-apply', 'async-locked', 'async-lockfree' or 'async-sharded'"
    assert suggest("async", distnet.SEMANTICS) == f"; did you mean {every}?"
    assert suggest("", ["sync", "async-apply"]) == "; expected one of sync, async-apply"


# ---- addresses and arguments -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://localhost", "it has no port: did you mean tcp://localhost:7400?"),
        ("127.0.0.1", "it has no port: did you mean tcp://127.0.0.1:7400?"),
        ("http://localhost:7400/", "did you mean tcp://localhost:7400?"),
        ("tcp://127.0.0.1:99999", "the port 99999 is above 65535"),
        ("tcp://host:7400,tcp://host", "it has no port"),
        (7400, "address is 7400; expected a text"),
    ],
)
def test_what_is_almost_an_address_is_refused_with_what_was_meant(address: object, words: str) -> None:
    with pytest.raises(distnet.ConfigError, match=words.replace("?", r"\?")):
        check_address("address", address, several=True)


def test_addresses_pass() -> None:
    for address in ("shm://", "shm://a.1", "tcp://host:0", "tcp://[::1]:7400", "tcp://a:1,tcp://b:2"):
        check_address("address", address, several=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: distnet.connect("tcp://localhost:1", rank="0"), "rank is '0'; expected a whole number"),  # type: ignore[arg-type]
        (lambda: distnet.connect("tcp://localhost:1", 0, timeout="1"), "timeout is '1'; expected seconds"),  # type: ignore[arg-type]
        (lambda: distnet.connect(7400), "address is 7400; expected a text"),  # type: ignore[arg-type]
        (lambda: distnet.ParameterServer(groups={"b*": 0.1}), r"groups has 'b\*': 0.1; expected"),  # type: ignore[dict-item]
        (lambda: distnet.ParameterServer(groups=[]), r"groups is \[\]; expected"),  # type: ignore[arg-type]
        (lambda: distnet.ParameterServer(address="localhost"), "it has no port"),
    ],
)
def test_arguments_of_another_type_are_refused_in_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(distnet.ConfigError, match=words):
        call()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"": MODEL["layer/bias"]}, "name '' has 0 bytes"),
        ({"n" * 1025: MODEL["layer/bias"]}, "name 'nnn.*…' has 1,025 bytes"),
        ([1], "tensor '0' is an int"),
    ],
)
def test_what_is_wrong_with_a_model_is_named(model: Any, words: str) -> None:
    with pytest.raises(distnet.ManifestMismatch, match=words):
        distnet.ParameterServer(model)


# ---- a model that nobody brings, and groups that match nothing -------------------------------------------------------
def test_rank_0_hears_that_it_brings_no_model(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Waiting("rank 0", "shm://x", 30.0, no_model="pass it")
    waiting.heard("the server at shm://x has no model yet: rank 0 brings it", False)
    waiting.look()  # another process may bring it
    launched = Waiting("rank 0", "shm://x", 30.0, no_model="pass it", nobody_else=True)
    launched.heard("the server at shm://x has no model yet: rank 0 brings it", True)
    launched.look()  # it is on its way
    launched.heard("the server at shm://x has no model yet: rank 0 brings it", False)
    with pytest.raises(
        distnet.ConfigError, match="the server at shm://x has no model, and rank 0 passes no parameters="
    ):
        launched.look()


def test_rank_0_of_a_launcher_without_parameters_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with distnet.ParameterServer(workers=2) as server:
        for name, value in (("ADDRESS", server.address), ("RANK", "0"), ("WORKERS", "2")):
            monkeypatch.setenv(f"DISTNET_{name}", value)
        with pytest.raises(distnet.ConfigError, match="rank 0 passes no parameters="):
            distnet.connect()


def test_a_rank_beyond_a_synchronous_job_does_not_wait_for_its_model() -> None:
    with (
        distnet.ParameterServer(semantics="sync", workers=2) as server,
        pytest.raises(distnet.ConfigError, match="rank 5 of a job of 2 workers"),
    ):
        distnet.connect(server.address, 5, connect_timeout=20.0)


def test_a_group_without_a_tensor_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "distnet")
    groups = {"*kernel": distnet.Group(2.0), "*gamma*": distnet.Group(0.5)}
    distnet.ParameterServer(MODEL, groups=groups)
    words = ["the group '*gamma*' matches no tensor of the model ('layer/kernel', 'layer/bias'), and has no effect"]
    assert [record.getMessage() for record in caplog.records] == words
    caplog.clear()
    with distnet.ParameterServer(groups=groups) as server:
        server.stats()
        assert not caplog.records
        with distnet.connect(server.address, 0, parameters=MODEL):
            server.stats()
            server.stats()
    assert [record.getMessage() for record in caplog.records] == words


# ---- going on --------------------------------------------------------------------------------------------------------
def test_what_differs_from_a_checkpoint_is_said_by_name(tmp_path: Path) -> None:
    with distnet.ParameterServer(MODEL, semantics="sync", checkpoint=tmp_path, checkpoint_every="7updates") as server:
        file = server.checkpoint()
    (difference,) = distnet.ParameterServer(restore=file, semantics="async-apply").restored.differences
    assert str(difference) == "semantics is async-apply, and was sync"
    assert str(distnet.Semantics(joins="all", on_loss="wait")) == "sync with on_loss='wait'"
    settings = job_settings(restore=str(file), checkpoint=str(tmp_path))
    assert settings.checkpoint_every == "7updates"  # as it was
    assert "every 7 updates and at the end" in start_line(settings, "run")
    assert "every 10 min and at the end" in start_line(JobSettings(checkpoint="new"), "run")
    waiting = dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="wait")  # as checkpoints are written
    assert make_server(**settings.to_mapping()).semantics == waiting
    with pytest.raises(distnet.ConfigError, match=rf"{file.name} was made with the optimizer 'sgd'"):
        distnet.ParameterServer(restore=file, optimizer=distnet.Adam(0.1))


def test_a_damaged_checkpoint_names_the_newest_good_one(tmp_path: Path) -> None:
    with distnet.ParameterServer(MODEL, checkpoint=tmp_path) as server, distnet.connect(server.address, 0) as client:
        for _ in range(3):
            client.push_pull({name: np.ones_like(array) for name, array in MODEL.items()})
            server.checkpoint()
    good, damaged = CheckpointFolder(tmp_path).files()[-2:]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    load(good)
    for restore in (tmp_path, damaged):
        with pytest.raises(distnet.CheckpointError, match=f"{good.name} is good: go on from it with --restore"):
            job_settings(restore=str(restore))


# ---- commands --------------------------------------------------------------------------------------------------------
def test_an_option_that_is_repeated_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--learning-rate", "0.1", "--group", "a=group(2)", "--learning-rate", "0.2", "--group", "b=x"]
    assert main([*arguments, "nosuch.py", "--epochs", "1", "--epochs", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "more than once" in line] == [
        "distnet: --learning-rate is given more than once; the last counts: 0.2"
    ]


def test_another_models_checkpoint_is_refused_before_images_are_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with distnet.ParameterServer(MODEL) as server:
        file = server.checkpoint(tmp_path)
    assert main(["evaluate", str(file), "--data", str(tmp_path / "nowhere")]) == 1
    assert f"{file.name} is not a checkpoint of AlexNet" in capsys.readouterr().err


def test_a_training_that_never_began_leaves_no_folder(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), RunFolder(tmp_path / "runs" / "deep" / "one", TrainConfig()):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "longer"),
    [(TrainConfig(steps=30), "--steps 60"), (TrainConfig(epochs=1.5), "--epochs 3"), (TrainConfig(), "--epochs N")],
)
def test_a_finished_run_says_how_to_train_longer(tmp_path: Path, config: TrainConfig, longer: str) -> None:
    write_config_file(tmp_path / "config.toml", config)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(distnet.ConfigError, match=f"has finished.*config.toml {longer} --out FOLDER"):
        config_to_resume(tmp_path, {})
