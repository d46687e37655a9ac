"""Models of very many small tensors: linear time, or a clear refusal where the model is given."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from worker_processes import ADDRESSES, TRANSPORTS, over_transports, serve

import distnet

FEW, MANY = 10_000, 100_000
FLOATS = 5
# Ten times as many tensors take ten times as long; quadratic time would take a hundred times as long.
MOST_TIMES_AS_LONG = 40.0


def model(tensors: int, value: float = 0.0) -> dict[str, Any]:
    """Return tensors with names of the length that frameworks give them."""
    flat = np.full((tensors, FLOATS), value, np.float32)
    return {f"backbone.stage3.block{i:06d}.attention.projection.bias": flat[i] for i in range(tensors)}


def steps(tensors: int, transport: str, push_format: str) -> float:
    """Serve a model, push and pull it in all ways, and return the seconds of that."""
    with serve(model(tensors), "async-apply", transport, push_format=push_format) as server:
        start = time.monotonic()
        client = distnet.connect(server.address, rank=0, transport=transport)
        out = model(tensors)
        ones = model(tensors, 1.0)
        client.push(ones)
        client.push_pull(ones, out=out)
        handle = client.begin_push_pull(ones)
        arrays = handle.wait()
        last = f"backbone.stage3.block{tensors - 1:06d}.attention.projection.bias"
        assert set(out[last]) == {-2.0}
        assert set(arrays[last]) == {-3.0}  # type: ignore[call-overload]
        client.close()
        return time.monotonic() - start


@pytest.mark.parametrize(
    ("transport", "push_format"), [*((transport, "float32") for transport in TRANSPORTS), ("tcp", "bfloat16")]
)
def test_a_hundred_thousand_tensors_take_linear_time(transport: str, push_format: str) -> None:
    few = steps(FEW, transport, push_format)
    many = steps(MANY, transport, push_format)
    assert many < MOST_TIMES_AS_LONG * few, f"{few:.2f} s for {FEW}, {many:.2f} s for {MANY}"


@over_transports
def test_a_worker_can_bring_a_hundred_thousand_tensors(transport: str) -> None:
    with distnet.ParameterServer(address=ADDRESSES[transport], semantics="async-apply", servers=2) as server:
        client = distnet.connect(server.address, rank=0, transport=transport, parameters=model(MANY, 2.0))
        assert all(set(array) == {2.0} for array in (client.pull()[name] for name in client.names[:: MANY // 10]))  # type: ignore[call-overload]
        client.close()


def test_names_that_no_message_carries_are_refused_where_the_model_is_given() -> None:
    array = np.zeros(0, np.float32)
    too_long = {f"{i:01000d}": array for i in range(67_000)}
    with pytest.raises(distnet.ConfigError, match="names and shapes of the model's 67000 tensors take"):
        distnet.ParameterServer(too_long)
    with serve(None, "async-apply", "shm") as server, pytest.raises(distnet.ConfigError, match="fewer and larger"):
        distnet.connect(server.address, rank=0, parameters=too_long)
