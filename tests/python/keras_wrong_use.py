"""What a user of ``distnet.keras`` is told of what cannot work: one clear error on each rank, and nobody waits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from keras_cases.tables import ADAM, MOMENTUM
from keras_cases.training import STEPS, WORKERS, Training
from keras_ranks import KerasRanks
from worker_processes import WorkerError, wait_until

import distnet

__all__ = ["WrongArgumentsContract", "WrongUseContract"]

ABORTING = dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="abort")
ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"update": "remote"}, "update is 'remote'; expected 'server' or 'local'"),
    ({"every": 0, "update": "local"}, "every is 0; expected a whole number"),
    ({"every": 2}, "every=2 goes with update='local'"),
    ({"state": "mean"}, "state is 'mean'; expected 'average' or 'rank0'"),
    ({"semantics": "snyc"}, "no semantics is named 'snyc'"),
    ({"semantics": "async-apply"}, "semantics is async-apply here, and the server has sync"),
    ({"servers": 2}, "servers is 2 here, and the server has 1"),
]
WITHOUT_EQUAL: list[tuple[str, dict[str, Any], str]] = [
    ("Adamax", {}, "Adamax has no equal"),
    ("Adadelta", {}, "Adadelta has no equal"),
    ("Adafactor", {}, "Adafactor has no equal"),
    ("Ftrl", {}, "Ftrl has no equal"),
    ("Lamb", {}, "Lamb has no equal"),
    ("RMSprop", {"weight_decay": 0.1}, r"RMSprop: weight_decay=0\.1 has no equal"),
    ("Adagrad", {"weight_decay": 0.1}, r"Adagrad: weight_decay=0\.1 has no equal"),
    ("SGD", {"use_ema": True, "ema_overwrite_frequency": 2}, "ema_overwrite_frequency=2"),
]
CHANGES: list[tuple[str, str, str]] = [
    ("another optimizer", "dense", "optimizer"),
    ("an optimizer that was put there", "dense", "optimizer"),
    ("a layer that trains now", "frozen", "optimizer"),
    ("a layer that is frozen now", "dense", "optimizer"),
]


class _OneWorker:
    """A server for one worker, and what that is told."""

    @pytest.fixture
    def server(self, ranks: KerasRanks) -> Iterator[distnet.ParameterServer]:
        """A server for one worker, which brings the model."""
        with distnet.ParameterServer(semantics="sync", workers=1) as server:
            yield server

    def refused(self, ranks: KerasRanks, call: str, server: distnet.ParameterServer, **arguments: Any) -> WorkerError:
        """Return what one worker is told."""
        with pytest.raises(WorkerError) as told:
            ranks.do(0, f"wrong_use.{call}", rank=0, address=server.local_address, workers=1, **arguments)
        return told.value


class WrongUseContract(_OneWorker):
    """While a model is fitted, where backends differ most."""

    @pytest.mark.parametrize("wrong", ["an optimizer that is replaced", "a model that is compiled anew"])
    def test_a_callback_that_replaces_the_optimizer_is_an_error(
        self, ranks: KerasRanks, server: distnet.ParameterServer, wrong: str
    ) -> None:
        training = Training(settings=MOMENTUM, epochs=3, steps=2)
        told = self.refused(ranks, "fit", server, training=training, wrong=wrong)
        assert told.name == "ConfigError"
        assert "optimizer" in told.message

    @pytest.mark.parametrize(("wrong", "model", "message"), CHANGES, ids=[wrong for wrong, _, _ in CHANGES])
    def test_a_change_that_the_server_does_not_hear_of_is_an_error(
        self, ranks: KerasRanks, server: distnet.ParameterServer, wrong: str, model: str, message: str
    ) -> None:
        training = Training(settings=MOMENTUM, model=model, steps=2)
        told = self.refused(ranks, "fit_after_a_change", server, training=training, wrong=wrong)
        assert told.name == "ConfigError"
        assert message in told.message

    @pytest.mark.parametrize("compiled", [{}, {"jit_compile": False}, {"run_eagerly": True}], ids=str)
    def test_a_gradient_that_is_not_finite_is_the_typed_error(
        self, ranks: KerasRanks, server: distnet.ParameterServer, compiled: dict[str, Any]
    ) -> None:
        training = Training(compiled=compiled)
        told = self.refused(ranks, "fit", server, training=training, wrong="a gradient that is not finite")
        assert told.name == "NonFiniteGradient"

    def test_a_worker_that_ends_early_is_told_on_every_rank(self, ranks: KerasRanks) -> None:
        first, second = self.together(ranks, "fewer steps")
        for told in (first, second):
            assert isinstance(told, WorkerError)
            assert "steps" in told.message

    def test_an_error_of_one_rank_ends_the_fit_of_the_other(self, ranks: KerasRanks) -> None:
        first, second = self.together(ranks, "an error")
        assert isinstance(second, WorkerError)
        assert second.name == "ArithmeticError"
        assert isinstance(first, WorkerError)
        assert first.name == "RoundAborted"
        assert "rank 1" in first.message

    def test_a_rank_that_stops_early_is_told_on_the_other(self, ranks: KerasRanks) -> None:
        first, second = self.together(ranks, "stopped", epochs=3)
        assert isinstance(first, WorkerError)
        assert first.name == "ConfigError"
        assert "rank 1 has left the job" in first.message
        assert second == {"iterations": STEPS}  # it has done what it was told

    def together(self, ranks: KerasRanks, wrong: str, epochs: int = 1) -> list[Any]:
        """Have both ranks fit while something goes wrong on rank 1; return results and errors."""
        with distnet.ParameterServer(semantics=ABORTING, workers=WORKERS) as server:
            return ranks.outcomes("wrong_use.fit", server, training=Training(epochs=epochs), wrong=wrong, wrong_rank=1)

    def test_servers_that_stop_end_the_fit_with_a_typed_error(self, ranks: KerasRanks) -> None:
        training = Training(epochs=100_000)
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(distnet.ParameterServer(semantics="sync", workers=WORKERS))
            workers = [
                ranks.begin(rank, "wrong_use.fit", rank=rank, address=server.local_address, training=training, wrong="")
                for rank in range(WORKERS)
            ]
            wait_until(lambda: server.stats()["updates"] > 10, "both train")
            stack.close()
            for worker in workers:
                with pytest.raises(WorkerError) as told:
                    worker.result()
                assert told.value.name in ("PeerClosed", "RoundAborted")


class WrongArgumentsContract(_OneWorker):
    """Before a model is fitted."""

    @pytest.mark.parametrize(("how", "message"), ARGUMENTS, ids=[str(how) for how, _ in ARGUMENTS])
    def test_an_argument_that_does_not_fit_is_a_clear_error(
        self, ranks: KerasRanks, server: distnet.ParameterServer, how: dict[str, Any], message: str
    ) -> None:
        told = self.refused(ranks, "distribute", server, training=Training(distributed=how))
        assert told.name == "ConfigError"
        assert message in told.message

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("no model", "expected a model of Keras"),
            ("twice", "distributed already"),
            ("an optimizer of its own", "subclass of Adam"),
            ("fitted before", "state"),
        ],
    )
    def test_what_cannot_be_distributed_is_refused_by_name(
        self, ranks: KerasRanks, server: distnet.ParameterServer, wrong: str, message: str
    ) -> None:
        training = Training(optimizer="Adam", settings=ADAM)
        told = self.refused(ranks, "distribute", server, training=training, wrong=wrong)
        assert told.name == "ConfigError"
        assert message in told.message

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        WITHOUT_EQUAL,
        ids=[f"{name} {settings}" for name, settings, _ in WITHOUT_EQUAL],
    )
    def test_an_optimizer_without_equal_is_refused_by_the_attribute(
        self, ranks: KerasRanks, server: distnet.ParameterServer, name: str, settings: dict[str, Any], message: str
    ) -> None:
        training = Training(optimizer=name, settings={"learning_rate": 0.01, **settings})
        told = self.refused(ranks, "distribute", server, training=training)
        assert told.name == "ConfigError"
        with pytest.raises(WorkerError, match=message):
            raise told

    def test_a_constraint_is_refused_by_its_variable(self, ranks: KerasRanks, server: distnet.ParameterServer) -> None:
        told = self.refused(ranks, "distribute", server, training=Training(model="constrained"))
        assert told.name == "ConfigError"
        assert "'first/kernel' has the constraint MaxNorm" in told.message

    def test_a_server_with_another_optimizer_is_an_error_with_both(self, ranks: KerasRanks) -> None:
        with distnet.ParameterServer(semantics="sync", workers=1, optimizer=distnet.SGD(0.5)) as server:
            told = self.refused(ranks, "distribute", server, training=Training(optimizer="Adam", settings=ADAM))
        assert told.name == "ConfigError"
        assert "server has the optimizer sgd(0.5), and this rank's is adam(0.009" in told.message

    def test_a_server_with_a_schedule_is_an_error(self, ranks: KerasRanks) -> None:
        schedule = distnet.SGD(distnet.CosineDecay(0.1, updates=10))
        with distnet.ParameterServer(semantics="sync", workers=1, optimizer=schedule) as server:
            told = self.refused(ranks, "distribute", server, training=Training())
        assert told.name == "ConfigError"
        assert "which would never count" in told.message

    def test_a_script_in_no_job_is_told_how_to_start_it(self, ranks: KerasRanks) -> None:
        with pytest.raises(WorkerError, match="this process belongs to no job"):
            ranks.do(0, "wrong_use.without_a_job", training=Training())

    def test_a_model_that_differs_between_workers_is_an_error_that_names_the_tensor(self, ranks: KerasRanks) -> None:
        with distnet.ParameterServer(semantics="sync", workers=WORKERS) as server:
            ranks.do(0, "wrong_use.distribute", rank=0, address=server.local_address, training=Training())
            with pytest.raises(WorkerError, match=r"rank 1's model is not rank 0's.*more") as told:
                ranks.do(
                    1,
                    "wrong_use.distribute",
                    rank=1,
                    address=server.local_address,
                    training=Training(),
                    wrong="another model",
                )
        assert told.value.name == "ManifestMismatch"

    def test_workers_whose_optimizers_differ_are_told_both(self, ranks: KerasRanks) -> None:
        with distnet.ParameterServer(semantics="sync", workers=WORKERS) as server:
            address = server.local_address
            ranks.do(0, "wrong_use.distribute", rank=0, address=address, training=Training())
            training = Training(optimizer="Adam", settings=ADAM)
            with pytest.raises(WorkerError, match="give all ranks the same optimizer") as told:
                ranks.do(1, "wrong_use.distribute", rank=1, address=address, training=training)
        assert told.value.name == "ConfigError"
