"""distnet.keras.shard: workers have equally many of every kind of data, and no two of them the same."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distnet

keras = pytest.importorskip("keras")
door = pytest.importorskip("distnet.keras")

Make = Callable[..., Any]
Pair = collections.namedtuple("Pair", ["x", "y"])


def shares(make: Make, workers: int, *arguments: Any) -> list[Any]:
    """Return the share of each rank, of data that each has made for itself."""
    return [door.shard(make(*arguments), rank=rank, workers=workers) for rank in range(workers)]


def numbers_of(*parts: Any) -> list[int]:
    """Return the numbers of all batches of some shares."""
    return [number for part in parts for batch in batches_of(part) for number in batch]


def batches_of(data: Any) -> list[list[int]]:
    """Return the numbers in each batch, or in each example."""
    return [np.ravel(np.asarray(batch)).tolist() for batch in data]


# ---- arrays --------------------------------------------------------------------------------------------------------
def numpy_array(values: Any) -> Any:
    return np.asarray(values)


def tensorflow_tensor(values: Any) -> Any:
    return pytest.importorskip("tensorflow").constant(values)


def torch_tensor(values: Any) -> Any:
    return pytest.importorskip("torch").tensor(values)


def jax_array(values: Any) -> Any:
    return pytest.importorskip("jax.numpy").asarray(values)


class Column:
    """Indexed by labels, and by place with ``iloc``, as those of pandas are."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def __getitem__(self, label: Any) -> Any:
        raise KeyError(label)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values

    @property
    def iloc(self) -> Any:
        values = self.values

        class ByPlace:
            def __getitem__(self, places: slice) -> Column:
                return Column(values[places])

        return ByPlace()


@pytest.mark.parametrize("array", [numpy_array, tensorflow_tensor, torch_tensor, jax_array, Column])
def test_arrays_of_every_kind_are_dealt_out_in_turn_and_stay_of_their_kind(array: Make) -> None:
    whole = array(list(range(11)))
    parts = [door.shard(whole, rank=rank, workers=3) for rank in range(3)]
    assert all(isinstance(part, type(whole)) for part in parts)
    assert [np.asarray(part).tolist() for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_structures_stay_what_they_are_and_none_stays_none() -> None:
    x, y = np.arange(12).reshape(6, 2), np.arange(6)
    data = ({"left": x, "right": [x + 100]}, y, None)
    mine = door.shard(data, rank=1, workers=2)
    assert isinstance(mine, tuple)
    assert mine[0]["left"].tolist() == [[2, 3], [6, 7], [10, 11]]
    assert isinstance(mine[0]["right"], list)
    assert mine[0]["right"][0].tolist() == [[102, 103], [106, 107], [110, 111]]
    assert mine[1].tolist() == [1, 3, 5]
    assert mine[2] is None
    assert isinstance(door.shard(Pair(x, y), rank=0, workers=2), Pair)


def test_the_share_of_a_numpy_array_takes_no_memory() -> None:
    whole = np.zeros((100, 10), np.float32)
    assert np.shares_memory(door.shard(whole, rank=1, workers=4), whole)


def test_batches_of_all_workers_together_are_those_of_one_with_a_larger_batch() -> None:
    whole, batch, workers = np.arange(24), 4, 3
    parts = [door.shard(whole, rank=rank, workers=workers) for rank in range(workers)]
    for number in range(2):
        together = np.concatenate([part[number * batch : (number + 1) * batch] for part in parts])
        size = batch * workers
        assert sorted(together) == whole[number * size : (number + 1) * size].tolist()


# ---- tf.data -------------------------------------------------------------------------------------------------------
def dataset_of(count: int, batch: int = 1) -> Any:
    return pytest.importorskip("tensorflow").data.Dataset.range(count).batch(batch)


def test_a_dataset_deals_out_its_batches_and_still_knows_how_many_there_are() -> None:
    parts = shares(dataset_of, 2, 22, 4)  # six batches, the last of two examples
    assert [int(part.cardinality()) for part in parts] == [3, 3]
    assert batches_of(parts[0]) == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]]
    assert batches_of(parts[1]) == [[4, 5, 6, 7], [12, 13, 14, 15], [20, 21]]


def test_a_dataset_of_unknown_length_gives_every_worker_equally_many() -> None:
    def make() -> Any:
        return dataset_of(17).filter(lambda value: value[0] != 3).map(lambda value: ({"x": value}, value + 100))

    parts = shares(make, 3)  # 16 elements: one is left out
    assert [[int(x["x"][0]) for x, _ in part] for part in parts] == [
        [0, 4, 7, 10, 13],
        [1, 5, 8, 11, 14],
        [2, 6, 9, 12, 15],
    ]
    assert parts[0].element_spec == make().element_spec


def test_a_dataset_without_an_end_stays_so() -> None:
    parts = shares(lambda: dataset_of(3).repeat(), 2)
    assert [int(part.cardinality()) for part in parts] == [-1, -1]
    assert [batches_of(part.take(4)) for part in parts] == [[[0], [2], [1], [0]], [[1], [0], [2], [1]]]


def test_a_dataset_shuffled_with_a_seed_is_dealt_out_without_overlap() -> None:
    parts = shares(lambda: dataset_of(20).shuffle(20, seed=4), 2)
    assert sorted(numbers_of(*parts)) == list(range(20))


def test_an_order_that_differs_between_workers_is_refused() -> None:
    with pytest.raises(distnet.ConfigError, match=r"without a seed: .*shard\(dataset\)\.shuffle"):
        door.shard(dataset_of(20).shuffle(20).prefetch(1), rank=0, workers=2)
    options = pytest.importorskip("tensorflow").data.Options()
    options.deterministic = False
    with pytest.raises(distnet.ConfigError, match="deterministic=False"):
        door.shard(dataset_of(20).with_options(options), rank=0, workers=2)


def test_a_shuffle_after_the_share_needs_no_seed() -> None:
    part = door.shard(dataset_of(20), rank=1, workers=2).shuffle(20)
    assert sorted(numbers_of(part)) == list(range(1, 20, 2))


# ---- PyDataset -----------------------------------------------------------------------------------------------------
class Squares(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
    """Batches of a number each; notes which were made, and turns round at the end of an epoch."""

    def __init__(self, batches: int | None) -> None:
        super().__init__(workers=2, max_queue_size=3)
        self.batches, self.made, self.epochs = batches, [], 0  # type: ignore[var-annotated]

    @property
    def num_batches(self) -> int | None:
        return self.batches

    def __getitem__(self, index: int) -> Any:
        self.made.append(index)
        value = index if self.epochs % 2 == 0 or self.batches is None else self.batches - 1 - index
        return np.full((4, 1), value, np.float32), np.zeros((4, 1), np.float32)

    def on_epoch_end(self) -> None:
        self.epochs += 1


def test_a_py_dataset_makes_only_the_batches_of_its_worker() -> None:
    whole = Squares(7)
    mine = door.shard(whole, rank=1, workers=2)
    assert isinstance(mine, keras.utils.PyDataset)
    assert (mine.num_batches, mine.workers, mine.max_queue_size) == (3, 2, 3)
    assert [int(x[0, 0]) for x, _ in mine] == whole.made == [1, 3, 5]
    mine.on_epoch_end()
    assert [int(x[0, 0]) for x, _ in mine] == [5, 3, 1]


def test_a_py_dataset_without_an_end_stays_so() -> None:
    mine = door.shard(Squares(None), rank=1, workers=3)
    assert mine.num_batches is None
    assert int(mine[1000][0][0, 0]) == 3001


# ---- PyTorch -------------------------------------------------------------------------------------------------------
def loader_of(count: int, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(torch.arange(count), **options)


def test_a_loader_deals_out_its_examples_and_keeps_its_batch_size() -> None:
    parts = shares(loader_of, 2, 11)
    assert [len(part) for part in parts] == [5, 5]
    parts = [door.shard(loader_of(11, batch_size=2), rank=rank, workers=2) for rank in range(2)]
    assert batches_of(parts[0]) == [[0, 2], [4, 6], [8]]
    assert batches_of(parts[1]) == [[1, 3], [5, 7], [9]]


def test_a_loader_that_shuffles_draws_one_order_for_all_workers_and_another_each_epoch() -> None:
    parts = [door.shard(loader_of(40, batch_size=4, shuffle=True), rank=rank, workers=2) for rank in range(2)]
    epochs = []
    for _ in range(2):
        read = [numbers_of(part) for part in parts]
        assert sorted(read[0] + read[1]) == list(range(40))
        epochs.append(read)
    assert epochs[0] != epochs[1]


def test_a_batch_sampler_of_a_program_has_its_batches_dealt_out() -> None:
    batches = [[0, 1], [2], [3, 4, 5], [6, 7], [8]]
    parts = [door.shard(loader_of(9, batch_sampler=batches), rank=rank, workers=2) for rank in range(2)]
    assert batches_of(parts[0]) == [[0, 1], [3, 4, 5]]
    assert batches_of(parts[1]) == [[2], [6, 7]]


def test_datasets_of_pytorch_are_shared_too() -> None:
    torch = pytest.importorskip("torch")
    part = door.shard(torch.utils.data.TensorDataset(torch.arange(7)), rank=1, workers=2)
    assert [int(value[0]) for value in part] == [1, 3, 5]

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[int]:
            return iter(range(7))

    assert list(door.shard(Stream(), rank=2, workers=3)) == [2, 5]
    loader = torch.utils.data.DataLoader(Stream(), batch_size=2)
    assert batches_of(door.shard(loader, rank=0, workers=2)) == [[0, 2], [4]]


def test_a_loader_that_reads_a_share_already_is_refused() -> None:
    torch = pytest.importorskip("torch")
    numbers = torch.arange(8)
    sampler = torch.utils.data.distributed.DistributedSampler(numbers, num_replicas=2, rank=0)
    with pytest.raises(distnet.ConfigError, match="a share already: give it to fit"):
        door.shard(torch.utils.data.DataLoader(numbers, sampler=sampler), rank=0, workers=2)


# ---- what cannot be ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ((number for number in range(3)), "a generator: to know which items are its own"),
        (iter([1, 2]), "a generator"),
        ([1, 2, 3], r"a list in which not everything is an array.*np\.asarray"),
        ((np.zeros(3), 5), "a tuple in which not everything is an array"),
        ("images", "data is a str; expected arrays, a tf.data.Dataset"),
        (None, "data is a NoneType"),
        ((np.zeros(6), np.zeros(5)), "the arrays have 6, 5 examples; .*training and validation data by a call each"),
        (np.zeros((1, 3)), "there are 1 examples for 2 workers"),
    ],
)
def test_what_cannot_be_shared_says_why(data: Any, expected: str) -> None:
    with pytest.raises(distnet.ConfigError, match=expected):
        door.shard(data, rank=0, workers=2)


def test_fewer_batches_than_workers_are_refused_by_every_kind() -> None:
    for few in (lambda: dataset_of(4, 4), lambda: Squares(1), lambda: loader_of(1)):
        with pytest.raises(distnet.ConfigError, match=r"there are 1 .* for 2 workers; expected at least one each"):
            door.shard(few(), rank=0, workers=2)


# ---- whose share ---------------------------------------------------------------------------------------------------
def test_rank_and_workers_are_the_jobs_own_unless_they_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert door.shard(np.arange(9)).tolist() == [1, 4, 7]
    assert door.shard(np.arange(9), rank=0, workers=2).tolist() == [0, 2, 4, 6]
    with pytest.raises(distnet.ConfigError, match="rank is 0 and workers is None; expected both, or neither"):
        door.shard(np.arange(9), rank=0)
    with pytest.raises(distnet.ConfigError, match="rank"):
        door.shard(np.arange(9), rank=2, workers=2)


def test_outside_any_job_it_says_what_is_missing() -> None:
    with pytest.raises(distnet.ConfigError, match="this process belongs to no job"):
        door.shard(np.arange(9))


# ---- every backend reads them --------------------------------------------------------------------------------------
READING = """
import sys
import numpy as np, keras, distnet.keras
from test_keras_shard import Squares

model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.0), loss="mse")
data = {"arrays": lambda: (np.arange(13, dtype="float32")[:, None], np.zeros((13, 1), "float32")),
        "batches": lambda: Squares(7)}
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    data["dataset"] = lambda: tf.data.Dataset.from_tensor_slices(data["arrays"]()).batch(2)
    data["unknown"] = lambda: data["dataset"]().filter(lambda x, y: True)
else:
    import torch
    arrays = [torch.from_numpy(each) for each in data["arrays"]()]
    data["loader"] = lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*arrays), batch_size=2)

steps = {}
class Count(keras.callbacks.Callback):
    def on_train_begin(self, logs=None): self.seen = 0
    def on_train_batch_end(self, batch, logs=None): self.seen += 1

for name, make in data.items():
    for rank in range(2):
        mine, count = distnet.keras.shard(make(), rank=rank, workers=2), Count()
        model.fit(*(mine if isinstance(mine, tuple) else (mine,)), epochs=2, batch_size=2 if name == "arrays" else None,
                  verbose=0, callbacks=[count])
        steps.setdefault(name, []).append(count.seen)
print(keras.backend.backend(), steps)
"""


@pytest.mark.slow
@pytest.mark.timeout(330)
@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_fit_reads_shares_of_each_kind_on_every_backend(backend: str, tmp_path: Any) -> None:
    pytest.importorskip(backend)
    if backend == "jax":
        pytest.importorskip("torch")
    script = tmp_path / "reading.py"
    script.write_text(READING)
    found = subprocess.run(
        [sys.executable, str(script), backend],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    last = found.stdout.splitlines()[-1]
    expected = {"arrays": [6, 6], "batches": [6, 6]}
    if backend == "tensorflow":
        expected |= {"dataset": [6, 6], "unknown": [6, 6]}
    else:
        expected |= {"loader": [6, 6]}
    assert last == f"{backend} {expected}"
