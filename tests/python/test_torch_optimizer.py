"""`distnet.torch.DistributedOptimizer`: workers over a server train as one process does with the whole batch."""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import distnet

torch = pytest.importorskip("torch")

from torch_training import (  # noqa: E402 - they need torch
    STEPS,
    WORKERS,
    Share,
    Training,
    assert_same,
    batch,
    by_workers,
    in_threads,
    loss_of,
    make_model,
    plain_steps,
    share_of,
)

from distnet.errors import ConfigError, DistNetWarning, ManifestMismatch  # noqa: E402
from distnet.torch import DistributedOptimizer  # noqa: E402
from distnet.torch.parameters import Parameters  # noqa: E402
from distnet.torch.translation import translated  # noqa: E402

SGD = Training(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
MOMENTUM = Training(
    optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
)
ADAM = Training(optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no more threads than there are ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_groups(model: Any) -> Any:
    return torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.01},
            {"params": model[2].parameters(), "lr": 0.003, "weight_decay": 0.2, "betas": (0.8, 0.99)},
        ],
        lr=0.1,
    )


# ---- whole-batch equality ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "training",
    [
        SGD,
        MOMENTUM,
        Training(optimizer=lambda model: torch.optim.Adagrad(model.parameters(), lr=0.1, lr_decay=0.1)),
        Training(optimizer=lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.5)),
        ADAM,
        Training(
            optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True)
        ),
        Training(optimizer=lambda model: torch.optim.NAdam(model.parameters(), lr=0.01)),
        Training(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.5)),
        Training(optimizer=two_groups),
    ],
    ids=["SGD", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW", "NAdam", "dampening", "groups"],
)
def test_two_workers_in_sync_equal_one_process_with_the_whole_batch(training: Training) -> None:
    outcome = by_workers(training)
    assert outcome.stats["updates"] == STEPS
    alone = training.run(batch)
    for model in outcome.models:
        assert_same(model, alone)


def warm_up(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))


def one_cycle(optimizer: Any) -> Any:
    rates = [2 * group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=STEPS + 1, cycle_momentum=False)


def group_by_group(optimizer: Any) -> Any:
    rates = [lambda step: 1 / (1 + step), lambda step: 1 + 0.1 * step]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rates)


def test_schedules_of_groups_that_part_go_with_each_push() -> None:
    training = Training(optimizer=two_groups, scheduler=group_by_group)
    alone = training.run(batch)
    for model in by_workers(training).models:
        assert_same(model, alone)


@pytest.mark.parametrize("first", [True, False], ids=["scheduler first", "scheduler second"])
@pytest.mark.parametrize("scheduler", [warm_up, one_cycle], ids=["warm-up from 0", "one cycle"])
@pytest.mark.parametrize("optimizer", [MOMENTUM.optimizer, two_groups], ids=["one group", "two groups"])
def test_a_scheduler_changes_the_rate_at_the_server(optimizer: Any, scheduler: Any, first: bool) -> None:
    training = Training(optimizer=optimizer, scheduler=scheduler, scheduler_first=first)
    alone = training.run(batch)
    for model in by_workers(training).models:
        assert_same(model, alone)


def closure_steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
    for step in range(STEPS):

        def closure(step: int = step) -> Any:
            optimizer.zero_grad()
            loss = loss_of(model, *share(step))
            loss.backward()
            return loss

        assert float(optimizer.step(closure).detach()) > 0


def accumulating_steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = share(step)
        for half in (slice(None, len(x) // 2), slice(len(x) // 2, None)):
            (loss_of(model, x[half], y[half]) / 2).backward()
        optimizer.step()


def scaled_steps(model: Any, optimizer: Any, share: Share, scheduler: Any, *, unscale: bool, spoilt: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, *share(step))).backward()
        if step == spoilt:
            next(model.parameters()).grad[0, 0] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0 ** (14 if spoilt < 0 else 12)


def resumed_steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
    """Save the optimizer's groups, spoil them, and load them again."""
    plain_steps(model, optimizer, share)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 17.0
    optimizer.load_state_dict(saved)
    plain_steps(model, optimizer, share)


@pytest.mark.parametrize(
    "steps",
    [
        closure_steps,
        accumulating_steps,
        functools.partial(scaled_steps, unscale=False, spoilt=-1),
        functools.partial(scaled_steps, unscale=True, spoilt=-1),
        functools.partial(scaled_steps, unscale=False, spoilt=3),
        resumed_steps,
    ],
    ids=["closure", "accumulation", "scaler", "scaler unscaled", "scaler that skips", "state_dict"],
)
def test_a_way_of_stepping_equals_one_process(steps: Any) -> None:
    training = dataclasses.replace(MOMENTUM, steps=steps)
    alone = training.run(batch)
    for model in by_workers(training).models:
        assert_same(model, alone)


def clipped_steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *share(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def clipped_halves(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
    """Clip the gradient of each half of the batch by itself, as each worker does, and step with their mean."""
    for step in range(STEPS):
        halves = []
        for rank in range(WORKERS):
            optimizer.zero_grad()
            loss_of(model, *share_of(rank)(step)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            halves.append([parameter.grad.clone() for parameter in model.parameters()])
        for parameter, one, other in zip(model.parameters(), *halves, strict=True):
            parameter.grad = (one + other) / 2
        optimizer.step()


def test_clipping_by_norm_is_of_each_rank_s_own_gradient() -> None:
    alone = dataclasses.replace(ADAM, steps=clipped_halves).run(batch)
    for model in by_workers(dataclasses.replace(ADAM, steps=clipped_steps)).models:
        assert_same(model, alone)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)]
)
def test_other_floats_are_float32_at_the_server_and_cast_once(dtype: Any, tolerance: float) -> None:
    training = dataclasses.replace(SGD, model=functools.partial(make_model, dtype))
    outcome = by_workers(training)
    alone = dataclasses.replace(SGD, model=make_model).run(batch)
    for model in outcome.models:
        assert all(parameter.dtype == dtype for parameter in model.parameters())
        assert_same(model, alone, 4 * tolerance)
    assert_same(outcome.models[0], outcome.models[1], 0.0)


# ---- one worker: what a step does ----------------------------------------------------------------------------------
@dataclasses.dataclass
class Door:
    """One worker's optimizer over a server, and what the tests look at."""

    model: Any
    optimizer: Any
    server: distnet.ParameterServer
    client: distnet.Client

    def backward(self, step: int = 0) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, *batch(step)).backward()

    @property
    def counts(self) -> dict[str, int]:
        stats = self.server.stats()
        return {"updates": stats["updates"], "abstained": stats["abstained"]}


@pytest.fixture
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    make = getattr(request, "param", ADAM.optimizer)
    model = make_model()
    optimizer = make(model)
    parameters = Parameters(optimizer, model)
    translation = translated(optimizer, parameters.names)
    with (
        distnet.ParameterServer(
            parameters.initial(), semantics="sync", optimizer=translation.optimizer, groups=translation.groups
        ) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        yield Door(model, DistributedOptimizer(optimizer, model, client=client), server, client)


def test_it_stays_the_same_object_of_its_own_class(door: Door) -> None:
    assert isinstance(door.optimizer, torch.optim.Adam)
    assert isinstance(door.optimizer, DistributedOptimizer)
    assert type(door.optimizer).__name__ == "Adam"


def test_replies_land_in_the_memory_of_the_parameters(door: Door) -> None:
    places = [parameter.data_ptr() for parameter in door.model.parameters()]
    values = [parameter.detach().clone() for parameter in door.model.parameters()]
    door.backward()
    door.optimizer.step()
    assert [parameter.data_ptr() for parameter in door.model.parameters()] == places
    assert not any(torch.equal(parameter, old) for parameter, old in zip(door.model.parameters(), values, strict=True))
    for parameter, array in zip(door.model.parameters(), door.server.parameters().values(), strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), array)


def test_the_state_is_at_the_server_alone(door: Door) -> None:
    door.backward()
    door.optimizer.step()
    assert door.optimizer.state_dict()["state"] == {}
    assert len(door.server.optimizer_state()) == 2


def test_a_step_without_any_gradient_abstains(door: Door) -> None:
    door.optimizer.step()
    assert door.counts == {"updates": 0, "abstained": 1}
    door.backward()
    door.optimizer.step()
    assert door.counts == {"updates": 1, "abstained": 1}


def test_a_step_that_a_scaler_skips_abstains(door: Door) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        door.optimizer.zero_grad()
        scaler.scale(loss_of(door.model, *batch(step))).backward()
        if step == 1:
            next(door.model.parameters()).grad[0, 0] = float("nan")
        scaler.step(door.optimizer)
        scaler.update()
    assert door.counts == {"updates": 2, "abstained": 1}
    assert scaler.get_scale() == 2.0**9


def test_a_rank_whose_step_is_skipped_does_not_hold_up_the_others() -> None:
    def steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(STEPS):
            optimizer.zero_grad()
            x, y = share(step)
            scaler.scale(loss_of(model, x, y)).backward()
            if step == 2 and torch.equal(x, share_of(1)(step)[0]):
                next(model.parameters()).grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()

    outcome = by_workers(dataclasses.replace(SGD, steps=steps))
    assert (outcome.stats["updates"], outcome.stats["abstained"]) == (STEPS, 1)
    assert_same(outcome.models[0], outcome.models[1], 0.0)


def test_a_missing_gradient_beside_others_is_zeros_and_said_once(door: Door) -> None:
    for step in range(2):
        door.backward(step)
        door.model[0].bias.grad = None
        expected = pytest.warns(DistNetWarning, match=r"parameter '0\.bias' has no gradient") if step == 0 else None
        if expected is None:
            door.optimizer.step()
        else:
            with expected:
                door.optimizer.step()
    assert door.counts["updates"] == 2


@pytest.mark.parametrize("door", [SGD.optimizer], indirect=True, ids=["SGD"])
def test_a_missing_gradient_is_as_in_one_process_where_zeros_move_nothing(door: Door) -> None:
    before = door.model[0].bias.detach().clone()
    door.backward()
    door.model[0].bias.grad = None
    door.optimizer.step()  # without a warning
    assert torch.equal(door.model[0].bias, before)


def test_hooks_of_a_step_are_called_once(door: Door) -> None:
    called: list[str] = []
    door.optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    door.optimizer.register_step_post_hook(lambda *_: called.append("after"))
    door.backward()
    door.optimizer.step()
    assert called == ["before", "after"]


def test_a_scheduler_that_came_first_does_not_keep_the_old_step(door: Door) -> None:
    model = make_model()
    optimizer = ADAM.optimizer(model)
    scheduler = warm_up(optimizer)
    with (
        distnet.ParameterServer(
            Parameters(optimizer, model).initial(), semantics="sync", optimizer=distnet.Adam(0.01)
        ) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        optimizer = DistributedOptimizer(optimizer, model, client=client)
        loss_of(model, *batch(0)).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
            scheduler.step()
        assert server.stats()["updates"] == 1


def test_the_rate_of_the_moment_goes_with_each_push(door: Door) -> None:
    door.optimizer.param_groups[0]["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in door.model.parameters()]
    door.backward()
    door.optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(door.model.parameters(), before, strict=True))


def test_a_copy_has_no_client_and_says_so(door: Door) -> None:
    with pytest.raises(ConfigError, match="a copy of a DistributedOptimizer"):
        copy.deepcopy(door.optimizer).step()


def test_what_changes_beside_the_rate_is_refused_by_name(door: Door) -> None:
    door.optimizer.param_groups[0]["betas"] = (0.8, 0.999)
    door.backward()
    with pytest.raises(ConfigError, match=r"group 0: betas is \(0\.8, 0\.999\) now.*cycle_momentum=False"):
        door.optimizer.step()


def test_a_group_that_is_added_later_is_refused(door: Door) -> None:
    door.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    door.backward()
    with pytest.raises(ConfigError, match="2 parameter groups now, and the server was told of 1"):
        door.optimizer.step()


def test_state_of_another_run_is_refused(door: Door) -> None:
    model = make_model()
    optimizer = ADAM.optimizer(model)
    plain_steps(model, optimizer, batch)
    with pytest.raises(ConfigError, match="holds state, such as momenta"):
        door.optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("make", [ADAM.optimizer, MOMENTUM.optimizer], ids=["Adam", "momentum"])
@pytest.mark.parametrize("loaded", [False, True], ids=["stepped", "loaded"])
def test_an_optimizer_that_holds_state_is_refused_rather_than_its_state_dropped(make: Any, loaded: bool) -> None:
    model = make_model()
    optimizer = make(model)
    plain_steps(model, optimizer, batch)
    if loaded:
        state = optimizer.state_dict()
        optimizer = make(model)
        optimizer.load_state_dict(state)
    with pytest.raises(ConfigError, match="the optimizer holds state, such as momenta"):
        DistributedOptimizer(optimizer, model)
    assert not isinstance(optimizer, DistributedOptimizer)


def test_a_misspelt_semantics_is_told_before_a_job_is_looked_for() -> None:
    model = make_model()
    with pytest.raises(ConfigError, match="no semantics is named 'snyc'"):
        DistributedOptimizer(ADAM.optimizer(model), model, semantics="snyc")


# ---- wrong use -----------------------------------------------------------------------------------------------------
def attach(optimizer: Any, model: Any, server: distnet.ParameterServer, **how: Any) -> Any:
    with distnet.connect(server.address, rank=0) as client:
        return DistributedOptimizer(optimizer, model, client=client, **how)


@pytest.fixture
def server() -> Iterator[distnet.ParameterServer]:
    model = make_model()
    initial = Parameters(SGD.optimizer(model), model).initial()
    with distnet.ParameterServer(initial, semantics="sync", optimizer=distnet.SGD(0.5), workers=1) as server:
        yield server


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"update": "remote"}, "update is 'remote'; expected 'server' or 'local'"),
        ({"every": 0, "update": "local"}, "every is 0; expected a whole number"),
        ({"every": 2}, "every=2 goes with update='local'"),
        ({"semantics": "async-apply"}, "semantics is async-apply here, and the server has sync"),
        ({"servers": 2}, "servers is 2 here, and the server has 1"),
    ],
)
def test_an_argument_that_does_not_fit_is_a_clear_error(
    server: distnet.ParameterServer, how: dict[str, Any], message: str
) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=message):
        attach(SGD.optimizer(model), model, server, **how)


def test_a_server_with_another_optimizer_is_an_error_with_both(server: distnet.ParameterServer) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=r"server has the optimizer sgd\(0\.5\), and this rank's is adam\(0\.01\)"):
        attach(ADAM.optimizer(model), model, server)


def test_a_server_with_a_schedule_is_an_error() -> None:
    model = make_model()
    initial = Parameters(SGD.optimizer(model), model).initial()
    with (
        distnet.ParameterServer(initial, optimizer=distnet.SGD(distnet.CosineDecay(0.1, updates=10))) as server,
        pytest.raises(ConfigError, match=r"schedule cosine\(.*which would never count"),
    ):
        attach(SGD.optimizer(model), model, server)


def test_another_model_is_an_error_that_names_the_tensor(server: distnet.ParameterServer) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.Linear(8, 3))
    with pytest.raises(ManifestMismatch, match=r"it has no '2\.weight', which the server holds"):
        attach(SGD.optimizer(model), model, server)
    model = torch.nn.Sequential(torch.nn.Linear(10, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    with pytest.raises(ManifestMismatch, match=r"0\.weight has shape \(8, 10\)"):
        attach(SGD.optimizer(model), model, server)


def test_a_refusal_leaves_the_optimizer_as_it_was(server: distnet.ParameterServer) -> None:
    model = make_model()
    optimizer = ADAM.optimizer(model)
    with pytest.raises(ConfigError):
        attach(optimizer, model, server)
    assert type(optimizer) is torch.optim.Adam
    loss_of(model, *batch(0)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64)), "'own' is complex64; expected float32"),
        (torch.nn.Parameter(torch.zeros(2, 0)), r"'own' has shape \(2, 0\); expected no empty dimension"),
    ],
)
def test_a_parameter_that_no_server_holds_is_refused_by_name(parameter: Any, message: str) -> None:
    model = torch.nn.Module()
    model.own = parameter
    with pytest.raises(ConfigError, match=message):
        DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a parameter of shape \(8, 10\) that is none of the model's"):
        DistributedOptimizer(SGD.optimizer(make_model()), make_model())


def test_what_is_no_optimizer_and_what_is_one_already_are_refused(door: Door) -> None:
    with pytest.raises(ConfigError, match="optimizer is a Linear"):
        DistributedOptimizer(torch.nn.Linear(1, 1), door.model)
    with pytest.raises(ConfigError, match="is a DistributedOptimizer already"):
        DistributedOptimizer(door.optimizer, door.model)


def test_a_frozen_parameter_stays_with_the_worker() -> None:
    model = make_model()
    model[0].weight.requires_grad_(False)
    optimizer = SGD.optimizer(model)
    initial = Parameters(optimizer, model).initial()
    assert list(initial) == ["0.bias", "2.weight", "2.bias"]
    with (
        distnet.ParameterServer(initial, semantics="sync", optimizer=distnet.SGD(0.1)) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        optimizer = DistributedOptimizer(optimizer, model, client=client)
        model[0].weight.requires_grad_(True)
        loss_of(model, *batch(0)).backward()
        with pytest.raises(ConfigError, match=r"'0\.weight' has a gradient, and needed none"):
            optimizer.step()


# ---- local updates -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("every", [1, 3])
def test_local_updates_are_averaged_every_so_many_steps(every: int) -> None:
    models = [MOMENTUM.model() for _ in range(WORKERS)]
    optimizers = [MOMENTUM.optimizer(model) for model in models]
    for step in range(STEPS):
        for rank in range(WORKERS):
            optimizers[rank].zero_grad()
            loss_of(models[rank], *share_of(rank)(step)).backward()
            optimizers[rank].step()
        if (step + 1) % every == 0 or step + 1 == STEPS:
            with torch.no_grad():
                for pair in zip(*(model.parameters() for model in models), strict=True):
                    mean = sum(pair) / WORKERS
                    for parameter in pair:
                        parameter.copy_(mean)
    outcome = by_workers(MOMENTUM, update="local", every=every)
    for model in outcome.models:
        assert_same(model, models[0])
    assert outcome.stats["updates"] == -(-STEPS // every)


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("training", [MOMENTUM, ADAM])
def test_local_steps_with_a_gradient_scaler_are_pytorchs_own(training: Training, unscales: bool) -> None:
    def steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, *batch(step))).backward()
            if step == 2:
                next(model.parameters()).grad[0, 0] = float("inf")
            if unscales:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**9

    alone = training.model()
    steps(alone, training.optimizer(alone), share_of(0), None)
    outcome = by_workers(dataclasses.replace(training, steps=steps), update="local")
    for model in outcome.models:
        assert_same(model, alone)


# ---- asynchronous semantics ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("semantics", "servers"), [("async-apply", 1), ("async-lockfree", 1), ("async-sharded", 2)])
def test_asynchronous_workers_reach_the_loss_of_one_process(semantics: str, servers: int) -> None:
    together = threading.Barrier(1)  # a rank that ran far ahead would end with the loss of its own share

    def steps(model: Any, optimizer: Any, share: Share, scheduler: Any) -> None:
        x, y = share(0)
        for _ in range(60):
            together.wait(30.0)
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()

    training = dataclasses.replace(SGD, steps=steps)
    start = float(loss_of(make_model(), *batch(0)).detach())
    alone = float(loss_of(training.run(batch), *batch(0)).detach())
    together = threading.Barrier(WORKERS)
    outcome = by_workers(training, semantics=semantics, servers=servers)
    assert outcome.stats["updates"] == WORKERS * 60  # each push is an update by itself
    loss = float(loss_of(outcome.models[0], *batch(0)).detach())
    assert start - loss > 0.9 * (start - alone)
    assert_same(outcome.models[0], outcome.models[1], 0.0)


def test_ranks_in_threads_raise_what_one_of_them_raised() -> None:
    def fail(rank: int) -> None:
        if rank == 1:
            raise ConfigError("told")

    with pytest.raises(ConfigError, match="told"):
        in_threads(fail)
