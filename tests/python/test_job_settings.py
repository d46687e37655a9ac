"""A job's settings: from options and files to the arguments of a server, and to the line that a job begins with."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")

import distnet
from distnet.alexnet.job.config import TrainConfig, read_config_file
from distnet.alexnet.job.plan import make_optimizer, make_plan, recipe_of
from distnet.alexnet.recipes import RECIPES
from distnet.cli.run import run
from distnet.cli.server_options import job_settings, make_server, recipe_config, settings_by_recipe
from distnet.errors import ConfigError
from distnet.launch.start_line import start_line
from distnet.settings.grammar import parse_schedule
from distnet.settings.job import JobSettings, join_settings


# ---- what makes the server -------------------------------------------------------------------------------------------
def test_everything_a_server_takes_can_be_said() -> None:
    settings = JobSettings(
        semantics="sync",
        workers=3,
        servers=2,
        address="tcp://127.0.0.1:0",
        optimizer="momentum(0.05, momentum=0.8)",
        schedule="cosine(updates=100, warmup=10)",
        groups=("*bias*=group(learning_rate_multiplier=2)",),
        clip_norm=3.0,
        ema_decay=0.99,
        push_format="topk:0.1",
        pull_format="int8",
        reduction="sum",
        max_inflight=4,
        on_loss="wait",
        round_timeout=60.0,
        reconnect_timeout=5.0,
        tuning="tuning(spin=0)",
    )
    schedule = distnet.Warmup(10, distnet.CosineDecay(0.05, 100))
    assert settings.server_arguments() == {
        "processes": True,
        "semantics": dataclasses.replace(
            distnet.SEMANTICS["sync"], reduction="sum", max_inflight=4, on_loss="wait", round_timeout=60.0
        ),
        "workers": 3,
        "servers": 2,
        "address": "tcp://127.0.0.1:0",
        "optimizer": distnet.Momentum(schedule, 0.8, clip_norm=3.0),
        "groups": {"*bias*": distnet.Group(2)},
        "ema_decay": 0.99,
        "push_format": "topk:0.1",
        "pull_format": "int8",
        "reconnect_timeout": 5.0,
        "tuning": distnet.Tuning(spin=0),
    }
    server = distnet.ParameterServer(None, **settings.server_arguments())  # it takes them all
    assert (server.workers, server.servers, server.semantics.on_loss) == (3, 2, "wait")


def test_every_setting_has_one_option_and_every_parameter_a_setting() -> None:
    settings = {field.name for field in dataclasses.fields(JobSettings)}
    options = {parameter.name for parameter in run.params}
    assert settings <= options
    parameters = set(inspect.signature(distnet.ParameterServer).parameters) - {"parameters", "processes"}
    assert parameters <= settings
    semantics = {field.name for field in dataclasses.fields(distnet.Semantics)}
    assert semantics - {"minimum_servers"} <= settings


def test_what_was_not_given_is_the_servers_own() -> None:
    assert JobSettings().server_arguments() == {"processes": True, "workers": 2}
    restored = JobSettings(restore="folder").server_arguments()  # then it is the checkpoint's
    assert restored == {"processes": True, "restore": "folder"}


def test_a_server_is_made_of_a_commands_options() -> None:
    server = make_server(semantics="sync", workers=4, learning_rate=0.5, groups=None, config_file=None)
    assert (server.workers, server.semantics) == (4, distnet.SEMANTICS["sync"])
    assert not server.running


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        (
            {"learning_rate": 0.1, "optimizer": "sgd(0.2)"},
            ["learning rate", "--learning-rate 0.1", "--optimizer 'sgd(0.2)'"],
        ),
        (
            {"clip_norm": 1.0, "optimizer": "sgd(clip_norm=2)"},
            ["clip norm", "--clip-norm 1.0", "--optimizer 'sgd(clip"],
        ),
        (
            {"schedule": "constant", "optimizer": "sgd(cosine(0.1, updates=9))"},
            ["schedule", "--schedule 'constant'", "--optimizer 'sgd(cosine"],
        ),
        (
            {"schedule": "cosine(0.1, updates=9)", "optimizer": "sgd(0.2)"},
            ["learning rate", "--schedule 'cosine(0.1, updates=9)'", "--optimizer 'sgd(0.2)'"],
        ),
        (
            {"schedule": "piecewise(boundaries=[], learning_rates=[1])", "learning_rate": 0.2},
            ["learning rate", "--schedule 'piecewise", "--learning-rate 0.2"],
        ),
    ],
)
def test_what_is_given_in_two_places_is_refused_with_both(settings: dict[str, Any], places: list[str]) -> None:
    with pytest.raises(ConfigError, match="given in two places") as caught:
        JobSettings(**settings)
    assert [place for place in places if place not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimzer": "sgd"}, "no setting is named 'optimzer'; did you mean 'optimizer'?"),
        ({"on_loss": "shrnk"}, "on_loss is 'shrnk'"),
        ({"max_inflight": "4"}, "max_inflight is '4'"),
        ({"round_timeout": 0}, "round_timeout is 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"optimizer": 5}, "optimizer is 5; expected a text such as"),
        ({"groups": "a=group()"}, "groups is 'a=group()'; expected a list"),
        ({"groups": ["a=group()", "a=group()"]}, "two groups have the pattern 'a'"),
        ({"checkpoint_every": "often"}, "'often'"),
        ({"when_a_worker_fails": "stopp"}, "did you mean 'stop'?"),
        ({"max_restarts": -1}, "max_restarts is -1"),
        ({"address": 7400}, "address is 7400"),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JobSettings.from_mapping(settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reaction"),
    [
        ({}, "continue"),
        ({"semantics": "sync"}, "stop"),
        ({"semantics": "sync", "on_loss": "shrink"}, "continue"),
        ({"semantics": "sync", "on_loss": "shrink", "when_a_worker_fails": "stop"}, "stop"),
        ({"when_a_worker_fails": "stop"}, "stop"),
    ],
)
def test_a_job_goes_on_without_a_worker_where_it_can(settings: dict[str, Any], reaction: str) -> None:
    assert JobSettings(**settings).after_failure == reaction


@pytest.mark.parametrize(
    ("settings", "on_loss"),
    [
        ({"semantics": "sync"}, "shrink"),
        ({"semantics": "sync", "checkpoint": "kept"}, "wait"),
        ({"semantics": "sync", "checkpoint": "kept", "on_loss": "shrink"}, "shrink"),
        ({"joins": "all", "replies": "after-apply", "checkpoint": "kept"}, "wait"),
        ({"semantics": "async-apply", "checkpoint": "kept"}, "shrink"),
    ],
)
def test_rounds_that_are_kept_wait_for_a_lost_worker_unless_told_otherwise(
    settings: dict[str, Any], on_loss: str
) -> None:
    assert JobSettings(**settings).semantics_value().on_loss == on_loss


def test_a_failure_means_the_same_to_a_job_that_goes_on() -> None:
    first = JobSettings(semantics="sync", checkpoint="kept")
    saved = {"semantics": first.semantics_value()}
    settings: tuple[dict[str, Any], ...] = ({}, {"checkpoint": "kept"})
    for more in settings:
        again = JobSettings(restore="kept", **more).filled_from(saved)
        assert (
            (again.semantics_value().on_loss, again.after_failure) == ("wait", first.after_failure) == ("wait", "stop")
        )
    given = JobSettings(restore="kept", on_loss="wait").filled_from(saved)
    assert given.after_failure == "continue"


# ---- files -----------------------------------------------------------------------------------------------------------
JOB = """
[job]
semantics = "sync"
workers = 3
address = "tcp://127.0.0.1:7411"
optimizer = "momentum(0.05, momentum=0.8)"
schedule = "cosine(updates=100)"

[job.groups]
"*bias*" = "group(weight_decay=0)"
"""


def test_options_win_over_a_files_settings(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    settings = job_settings(config_file=file, workers=5, learning_rate=0.1, semantics=None, groups=None)
    assert (settings.semantics, settings.workers, settings.address) == ("sync", 5, "tcp://127.0.0.1:7411")
    assert settings.server_arguments()["optimizer"] == distnet.Momentum(distnet.CosineDecay(0.1, 100), 0.8)
    assert settings.group_values() == {"*bias*": distnet.Group(weight_decay=0)}
    as_json = tmp_path / "job.json"
    as_json.write_text(json.dumps({"job": settings.to_mapping()}))
    assert job_settings(config_file=as_json) == settings
    assert TrainConfig.from_mapping(read_config_file(file)).workers == 3  # a training takes the same file


def test_the_documented_file_is_read_as_it_stands(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "job.toml"
    file.write_text(block)
    assert job_settings(config_file=file).restarts == 2
    for call in re.findall(r"`((?:cosine|exponential|piecewise|constant)[^`]*)`", text):
        parse_schedule(call, 0.1)


def test_options_win_also_over_what_a_file_says_in_other_words() -> None:
    assert join_settings({"optimizer": "sgd(0.1)"}, {"learning_rate": 0.2})["optimizer"] == "sgd()"
    file = {"learning_rate": 0.1, "schedule": "constant", "clip_norm": 1.0}
    assert join_settings(file, {"optimizer": "sgd(cosine(0.2, updates=9))"}) == {
        "optimizer": "sgd(cosine(0.2, updates=9))",
        "clip_norm": 1.0,
    }
    with pytest.raises(ConfigError, match="two places"):  # a schedule is not dropped without a word
        JobSettings(**join_settings({"optimizer": "sgd(cosine(0.2, updates=9))"}, {"learning_rate": 0.3}))


def test_a_trainings_file_is_not_taken_for_a_jobs(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[train]\nseed = 3\n")
    with pytest.raises(ConfigError, match=r"holds the settings of a training, \[train\]"):
        job_settings(config_file=file)


def test_what_was_not_given_is_the_checkpoints() -> None:
    saved = {
        "semantics": dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="wait"),
        "optimizer": distnet.Momentum(distnet.Warmup(5, distnet.CosineDecay(0.1, 100)), clip_norm=1.0),
        "workers": 3,
        "servers": 2,
        "ema_decay": 0.9,
        "groups": {"*bias*": distnet.Group(weight_decay=0)},
    }
    plain = JobSettings(restore="kept").filled_from(saved)
    assert plain.server_arguments() == {"processes": True, "restore": "kept", **saved}
    given = JobSettings(restore="kept", workers=4, learning_rate=0.2, on_loss="abort", ema_decay=0.0)
    arguments = given.filled_from(saved).server_arguments()
    faster = distnet.Warmup(5, distnet.CosineDecay(0.2, 100))
    assert arguments["optimizer"] == distnet.Momentum(faster, clip_norm=1.0)
    assert arguments["semantics"] == dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="abort")
    assert (arguments["workers"], arguments["servers"], arguments["ema_decay"]) == (4, 2, 0.0)


# ---- a recipe's ------------------------------------------------------------------------------------------------------
def optimizer_of(**given: Any) -> distnet.Optimizer:
    config = TrainConfig(steps=1000, batch_size=128, workers=1, semantics="async-apply", **given)
    return make_optimizer(config, make_plan(config, 50_000))


def test_a_recipe_brings_what_was_not_given() -> None:
    cosine = distnet.Warmup(50, distnet.CosineDecay(0.05, 950))
    assert optimizer_of(recipe="momentum") == distnet.Momentum(cosine, 0.9)
    faster = distnet.Warmup(50, distnet.CosineDecay(0.2, 950))
    assert optimizer_of(recipe="momentum", learning_rate=0.2) == distnet.Momentum(faster, 0.9)
    assert optimizer_of(recipe="momentum", optimizer="adam(0.2)") == distnet.Adam(faster)
    assert optimizer_of(recipe="momentum", schedule="constant") == distnet.Momentum(0.05, 0.9)
    assert optimizer_of(recipe="nesterov", clip_norm=1.0).clip_norm == 1.0
    assert recipe_of(TrainConfig(ema_decay=0.5)).ema_decay == 0.5
    assert recipe_of(TrainConfig()) == RECIPES["default"]


def test_a_served_recipe_is_a_job_of_the_same_optimizer() -> None:
    given = {"recipe": "momentum", "epochs": 1.0, "workers": 2, "pull_format": "int8", "address": "tcp://127.0.0.1:0"}
    settings = settings_by_recipe(50_000, **given)
    config = TrainConfig(recipe="momentum", epochs=1.0, workers=2)
    assert settings.server_arguments()["optimizer"] == make_optimizer(config, make_plan(config, 50_000))
    assert (settings.ema_decay, settings.pull_format) == (RECIPES["momentum"].ema_decay, "int8")
    assert settings_by_recipe(50_000, workers=2) == JobSettings(workers=2)
    assert recipe_config(workers=2) is None


# ---- the line at the start -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "launcher", "words"),
    [
        (
            JobSettings(semantics="sync", optimizer="momentum(0.05)", schedule="cosine(updates=1000, warmup=50)"),
            "run",
            [
                "sync: one gradient of every worker makes an update",
                "momentum(0.05, momentum=0.9, nesterov=false, weight_decay=0)",
                "schedule cosine(updates=1000, final=0, warmup=50, warmup_start=0)",
                "1 server, 2 workers",
                "shared memory",
                "a worker that fails stops the job",
            ],
        ),
        (
            JobSettings(max_restarts=2, address="tcp://0.0.0.0:7400", push_format="int8", ema_decay=0.99),
            "run",
            [
                "async-lockfree: each gradient",
                "sgd(0.01, weight_decay=0), unless rank 0 brings an optimizer · learning rate constant",
                "TCP, and shared memory within this host; over TCP gradients as int8",
                "EMA 0.99",
                "is started again, up to 2 times; then the others go on without a lost worker",
            ],
        ),
        (
            JobSettings(semantics="sync", on_loss="wait", checkpoint="kept", checkpoint_every="10min"),
            "serve",
            [
                "checkpoints in kept, every 10 min and at the end",
                "rounds wait for a lost or silent worker",
            ],
        ),
        (
            JobSettings(semantics="sync", checkpoint="kept", max_restarts=1),
            "run",
            ["started again, up to 1 time, and the rounds wait for it; then it stops the job"],
        ),
        (
            JobSettings(semantics="sync"),
            "serve",
            [
                "sgd(0.01, weight_decay=0), unless rank 0 brings an optimizer",
                "rounds go on without a lost worker, and wait 30 min for a silent one",
            ],
        ),
        (
            JobSettings(restore="kept", semantics="sync", reduction="sum"),
            "train",
            [
                "sync (reduction=sum)",
                "goes on from kept",
                "a worker that fails ends the training",
            ],
        ),
    ],
)
def test_a_job_says_what_it_runs(settings: JobSettings, launcher: Any, words: list[str]) -> None:
    line = start_line(settings, launcher)
    assert "\n" not in line
    assert [part for part in words if part not in line] == []
