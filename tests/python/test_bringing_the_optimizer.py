"""Rank 0 brings an optimizer with the model, for a server that was told of none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.client import connecting
from distnet.errors import ConfigError
from distnet.shards.settings import settings_from_text

MODEL = {"head.w": np.ones(3, np.float32), "body.w": np.ones(70, np.float32)}
GROUPS = {"head.*": distnet.Group(learning_rate_multiplier=0.5, weight_decay=0.0)}
BRINGS: dict[str, Any] = {"parameters": MODEL, "optimizer": distnet.Adam(0.25, weight_decay=0.1), "groups": GROUPS}


@contextlib.contextmanager
def serve(processes: bool, **arguments: Any) -> Iterator[distnet.ParameterServer]:
    with distnet.ParameterServer(semantics="sync", workers=1, processes=processes, **arguments) as server:
        yield server


def train(client: distnet.Client) -> dict[str, Any]:
    for step in range(3):
        arrays = client.push_pull({name: np.full_like(array, 1.0 + step) for name, array in MODEL.items()})
    return {name: np.array(array) for name, array in dict(zip(MODEL, arrays.values(), strict=True)).items()}


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("processes", [False, True], ids=["in process", "processes"])
def test_an_optimizer_that_is_brought_steps_as_one_that_was_said(processes: bool, servers: int) -> None:
    said = {"optimizer": BRINGS["optimizer"], "groups": GROUPS, "servers": servers}
    with serve(False, **said) as server, distnet.connect(server.address, 0, parameters=MODEL) as client:
        expected = train(client)
    with serve(processes, servers=servers) as server, distnet.connect(server.address, 0, **BRINGS) as client:
        for name, array in train(client).items():
            np.testing.assert_array_equal(array, expected[name])
        assert (client.server_optimizer, client.server_groups) == (BRINGS["optimizer"], GROUPS)
        assert client.server_semantics == distnet.SEMANTICS["sync"]
        assert server.optimizer == BRINGS["optimizer"]
        assert len(server.optimizer_state()) == 2


def test_a_checkpoint_has_the_optimizer_that_was_brought(tmp_path: Any) -> None:
    with serve(False) as server, distnet.connect(server.address, 0, **BRINGS) as client:
        train(client)
        server.checkpoint(tmp_path)
    with distnet.ParameterServer(restore=tmp_path) as server:
        assert server.optimizer == BRINGS["optimizer"]
        with distnet.connect(server.address) as client:
            assert client.server_groups == GROUPS


def test_a_server_that_was_told_of_an_optimizer_keeps_it() -> None:
    with serve(False, optimizer=distnet.SGD(0.5)) as server, distnet.connect(server.address, 0, **BRINGS) as client:
        assert (client.server_optimizer, client.server_groups) == (distnet.SGD(0.5), {})
        assert train(client)["head.w"][0] == 1.0 - 0.5 * 6


def test_a_server_without_either_has_the_default() -> None:
    with serve(False) as server, distnet.connect(server.address, 0, parameters=MODEL) as client:
        assert client.server_optimizer == server.optimizer == distnet.SGD(0.01)


def test_a_server_with_a_model_does_not_take_an_optimizer() -> None:
    with (
        distnet.ParameterServer(MODEL, semantics="sync") as server,
        distnet.connect(server.address, 0, **BRINGS) as client,
    ):
        assert client.server_optimizer == distnet.SGD(0.01)


@pytest.mark.parametrize(
    ("brings", "message"),
    [
        ({"groups": GROUPS}, "groups= goes with optimizer="),
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected one such as"),
        ({"optimizer": distnet.SGD(distnet.CosineDecay(0.1, updates=5))}, "optimizer= has a schedule"),
        ({"optimizer": distnet.SGD(0.1), "groups": {"*": 3}}, "expected a pattern and a Group"),
        (
            {"optimizer": distnet.SGD(0.1), "groups": {f"layer{i}.*": distnet.Group() for i in range(2000)}},
            "the optimizer has 2000 groups, more than a client can bring",
        ),
    ],
)
def test_what_cannot_be_brought_is_a_clear_error(brings: dict[str, Any], message: str) -> None:
    with serve(False) as server, pytest.raises(ConfigError, match=message):
        distnet.connect(server.address, 0, parameters=MODEL, **brings)


@pytest.mark.parametrize("text", ["adam", "3", "[" * 20_000, '{"optimizer": 5}', '{"optimizer": ' + "9" * 5000 + "}"])
def test_a_text_about_an_optimizer_that_is_none_is_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError, match="this version knows"):
        settings_from_text(text)


def test_what_is_said_of_a_brought_optimizer_changes_nothing_else(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = connecting._brought(BRINGS["optimizer"], GROUPS)
    assert brought is not None
    text = json.dumps(json.loads(brought["text"]) | {"workers": 7})
    monkeypatch.setattr("distnet.client.connecting._brought", lambda *said: brought | {"text": text})
    with serve(False) as server, distnet.connect(server.address, 0, **BRINGS) as client:
        train(client)
        server.checkpoint(tmp_path)
    with distnet.ParameterServer(restore=tmp_path) as server:
        assert (server.workers, server.optimizer) == (1, BRINGS["optimizer"])
