"""A plain fit by several workers: begun alike, with metrics of all of them, files of rank 0's, and one end for all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_cases.training import BATCH, STEPS, Training
from keras_ranks import KerasRanks, assert_same
from worker_processes import WorkerError

import distnet

pytest.importorskip("keras")
backup = pytest.importorskip("distnet.keras.backup")
Beginning, epoch_of, with_epoch = backup.Beginning, backup.epoch_of, backup.with_epoch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

AT_ONCE_S = 20.0  # beside other busy processes; the shortest timeout that would end such a wait is 30 s


@pytest.fixture(scope="module", params=["torch", "tensorflow", "jax"])
def pool(request: pytest.FixtureRequest) -> Iterator[KerasRanks]:
    """Two processes of each backend in turn."""
    pytest.importorskip(request.param)
    pool = KerasRanks(request.param)
    yield pool
    pool.end()


@pytest.fixture
def ranks(pool: KerasRanks) -> Iterator[KerasRanks]:
    """The processes, which a failed test may leave busy or dead."""
    yield pool
    pool.mend()


def both(ranks: KerasRanks, call: str, *, training: Training, semantics: Any = "sync", **arguments: Any) -> list[Any]:
    """Have two ranks call a function beside a server of their own, and return results and errors."""
    with distnet.ParameterServer(semantics=semantics, workers=2) as server:
        return ranks.outcomes(f"fits.{call}", server, training=training, **arguments)


def assert_all_were_told_at_once(outcomes: list[Any]) -> None:
    for each in outcomes:
        assert isinstance(each, WorkerError), each
        assert each.seconds < AT_ONCE_S


def test_metrics_are_those_of_all_workers_and_files_are_rank_0s(ranks: KerasRanks, tmp_path: Path) -> None:
    training = Training(model="batch norm", settings={"learning_rate": 0.01}, epochs=3)
    first, second = both(ranks, "watched", training=training, folder=str(tmp_path))
    for each in (first, second):
        assert not isinstance(each, Exception), each
    assert first["history"] == second["history"]
    assert first["evaluated"] == second["evaluated"]
    assert first["rate"] == second["rate"] == pytest.approx(0.0025)
    assert_same(first, second, 0.0)
    assert first["written"] == ["best.weights.h5", "log.csv"]
    assert second["written"] == []
    lines = (tmp_path / "rank0" / "log.csv").read_text().splitlines()
    assert len(lines) == 4
    assert f"{first['history']['loss'][0]:.5f}" in lines[1] or str(first["history"]["loss"][0])[:6] in lines[1]
    assert "norm/moving_mean and 1 more, which are not trained, are averaged over all workers" in first["said"]


def test_metrics_weigh_each_worker_by_its_examples(ranks: KerasRanks) -> None:
    training = Training(settings={"learning_rate": 0.01}, epochs=2)
    alone = ranks.do(0, "fits.alone", training=training)
    first, second = both(ranks, "differing", training=training, each=[{}, {}])
    for name in ("loss", "mae", "val_loss", "val_mae"):
        assert first[name] == second[name]
        np.testing.assert_allclose(first[name], alone["history"][name], rtol=1e-5)


def test_an_early_stop_is_one_for_all_and_the_next_fit_begins_at_the_restored_weights(ranks: KerasRanks) -> None:
    training = Training(settings={"learning_rate": 0.05}, epochs=6)
    first, second = both(ranks, "stopped_early", training=training)
    assert not isinstance(first, Exception), first
    assert first["epochs"] == second["epochs"] == 2
    assert_same({"weights": first["restored"]}, {"weights": second["restored"]}, 0.0)
    one_epoch = both(ranks, "differing", training=Training(settings={"learning_rate": 0.05}), each=[{"epochs": 2}] * 2)
    # The best was the first epoch's end; so the fit after that made the second epoch once more.
    assert first["history"]["loss"] == pytest.approx([one_epoch[0]["loss"][1]], rel=1e-5)
    assert "are the server's now" in first["said"]


def test_asynchronous_workers_end_an_epoch_with_the_same_parameters(ranks: KerasRanks, tmp_path: Path) -> None:
    training = Training(model="batch norm", settings={"learning_rate": 0.01}, epochs=2)
    first, second = both(ranks, "watched", training=training, folder=str(tmp_path), semantics="async-apply")
    assert not isinstance(first, Exception), first
    assert first["history"] == second["history"]
    assert first["evaluated"] == second["evaluated"]
    assert_same(first, second, 0.0)


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        ([{}, {"epochs": 3}], "workers differ in their epochs: rank 0 has 1; rank 1 has 3"),
        ([{}, {"examples": BATCH}], f"their steps in an epoch: rank 0 has {STEPS}; rank 1 has 2.*distnet.keras.shard"),
        ([{}, {"validation_data": None}], "their validation data: rank 0 has True; rank 1 has False"),
    ],
)
def test_fits_that_would_not_end_together_do_not_begin(ranks: KerasRanks, each: Any, expected: str) -> None:
    outcomes = both(ranks, "differing", training=Training(), each=each)
    assert_all_were_told_at_once(outcomes)
    for error in outcomes:
        assert error.name == "ConfigError"
        assert re.search(expected, error.message), error.message


def test_a_worker_whose_data_end_early_is_told_and_so_are_the_others(ranks: KerasRanks) -> None:
    outcomes = both(ranks, "uneven", training=Training(), steps=[3, 5])
    assert_all_were_told_at_once(outcomes)
    assert outcomes[0].name == "RoundAborted"
    assert "rank 0 is at the end of epoch 1, and others wait for its push" in outcomes[0].message
    assert outcomes[1].name == "RoundAborted"
    assert "rank 0" in outcomes[1].message


def test_a_worker_that_fails_at_an_epochs_end_is_heard_of_at_once(ranks: KerasRanks) -> None:
    aborting = distnet.Semantics(joins="all", on_loss="abort")
    first, second = both(ranks, "raising", training=Training(), semantics=aborting)
    assert_all_were_told_at_once([first, second])
    assert second.name == "ArithmeticError"
    assert first.name in ("PeerClosed", "RoundAborted")
    assert "rank 1" in first.message


def test_rank_0_may_evaluate_by_itself_once_the_others_have_left(ranks: KerasRanks) -> None:
    first, second = both(ranks, "evaluated_by_rank_0", training=Training())
    assert not isinstance(second, Exception), second
    assert not isinstance(first, Exception), first
    np.testing.assert_allclose([*first["seen"].values()], [*first["own"].values()], rtol=1e-5)
    assert "rank 1 has left the job: these results are of this rank's data alone" in first["said"]


# ---- BackupAndRestore ----------------------------------------------------------------------------------------------
def test_a_backup_goes_on_at_its_epoch_with_its_weights(ranks: KerasRanks, tmp_path: Path) -> None:
    training = Training(settings={"learning_rate": 0.05}, epochs=4)
    whole = both(ranks, "backed_up", training=training, folder=str(tmp_path), stops_in=None)
    cut = both(ranks, "backed_up", training=training, folder=str(tmp_path), stops_in=2)
    assert [each["begun"] for each in cut] == [[0, 1, 2]] * 2
    resumed = both(ranks, "backed_up", training=training, folder=str(tmp_path), stops_in=None)
    assert [each["begun"] for each in resumed] == [[2, 3]] * 2
    for rank in range(2):
        assert_same(resumed[rank], whole[rank])  # SGD without momentum has no state that a backup lacks
    assert (
        "the values with which epoch 3 begins, restored by BackupAndRestore, are the server's now" in resumed[0]["said"]
    )
    assert not (tmp_path / "rank1" / "backup").exists()


def test_a_resumed_server_counts_and_says_the_epoch(ranks: KerasRanks, tmp_path: Path) -> None:
    momentum = {"learning_rate": 0.05, "momentum": 0.9}
    training = Training(settings=momentum, epochs=4)
    whole = both(ranks, "backed_up", training=training, folder=str(tmp_path), stops_in=None)
    with distnet.ParameterServer(semantics="sync", workers=2) as server:
        ranks.outcomes("fits.backed_up", server, training=training, folder=str(tmp_path), stops_in=3)
        snapshot = server.snapshot()
    with distnet.ParameterServer(restore=snapshot, semantics="sync", workers=2) as server:
        resumed = ranks.outcomes("fits.backed_up", server, training=training, folder=str(tmp_path), stops_in=None)
    assert [each["begun"] for each in resumed] == [[3]] * 2
    assert "the server is where epoch 4 begins" in resumed[0]["said"]
    for rank in range(2):
        assert_same(resumed[rank], whole[rank], 0.0)  # with momenta, which no backup has


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"trained": False, "differs": False}, (False, None, "")),
        ({"trained": False, "differs": True}, (True, None, "the values of rank 0 are the server's now")),
        ({"trained": False, "differs": True, "restored": 2}, (True, 2, "epoch 3 begins, restored by BackupAndRestore")),
        ({"trained": True, "differs": True}, (False, None, "what was loaded into the model is dropped")),
        ({"trained": True, "differs": False, "restored": 2, "saved": 1}, (False, 2, "where epoch 3 begins")),
        ({"trained": True, "differs": True, "restored": 2, "saved": 4}, (False, 4, "in epoch 5, and the file .* 3")),
        ({"trained": True, "differs": True, "restored": 2, "saved": 2}, (False, 2, "in epoch 3$")),
        ({"trained": True, "differs": True, "saved": 2}, (False, 2, "in epoch 3$")),
        ({"trained": True, "differs": False, "backs_up": True}, (False, None, "")),
    ],
)
def test_where_a_fit_begins(told: dict[str, Any], expected: tuple[bool, int | None, str]) -> None:
    backs_up = told.pop("backs_up", "restored" in told or "saved" in told)
    beginning = Beginning.of(**{"restored": None, "saved": None, "backs_up": backs_up, **told})
    assert (beginning.brings, beginning.epoch) == expected[:2]
    assert re.search(expected[2], beginning.said)
    assert bool(beginning.said) == bool(expected[2])


def test_a_backup_beside_a_server_that_does_not_say_its_epoch_is_refused() -> None:
    with pytest.raises(distnet.ConfigError, match=r"of epoch 3: remove its backup_dir .*--resume"):
        Beginning.of(trained=True, differs=True, backs_up=True, restored=2, saved=None)
    assert epoch_of(None) is None
    assert epoch_of(b"a program's own") is None
    assert epoch_of(with_epoch(7)) == 7
    for never in (with_epoch(-1), with_epoch(2**40), b'{"distnet.keras epoch": Infinity}'):
        assert epoch_of(never) is None
