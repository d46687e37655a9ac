"""The images: their files, their shares, and what is done to them on the way to a minibatch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from distnet.data import cifar10
from distnet.data.generated import generate
from distnet.data.shares import shard_indices, steps_of
from distnet.errors import ConfigError

tf = pytest.importorskip("tensorflow")
pipeline = pytest.importorskip("distnet.alexnet.images")

RECORD_BYTES = 3073
FILE_BYTES = 10_000 * RECORD_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The six files of the right size; all black and of class 0 but for the first image of each."""
    for number, name in enumerate((*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)):
        with open(tmp_path / name, "wb") as file:
            file.write(bytes([number]) + bytes([10 + number]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024)
            file.truncate(FILE_BYTES)
    return tmp_path


def test_official_files_are_read_in_their_order_with_planes_turned_into_pixels(folder: Path) -> None:
    data = cifar10.load_data(folder)
    assert data.name == "cifar10"
    assert data.train_images.shape == (50_000, 32, 32, 3)
    assert data.test_images.shape == (10_000, 32, 32, 3)
    assert data.train_labels[::10_000].tolist() == [0, 1, 2, 3, 4]
    assert data.test_labels[0] == 5
    assert (data.train_images[20_000] == [12, 20, 30]).all()
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int32


def test_the_folder_above_the_official_one_does_as_well(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for name in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES):
        (folder / name).rename(inner / name)
    assert cifar10.load_data(str(tmp_path)).test_labels[0] == 5


def test_held_out_images_are_the_last_training_ones_and_take_the_test_images_place(folder: Path) -> None:
    data = cifar10.load_data(folder, holdout=15_000)
    assert (len(data.train_images), len(data.train_labels)) == (35_000, 35_000)
    assert (len(data.test_images), len(data.test_labels)) == (15_000, 15_000)
    assert data.train_labels[::10_000].tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(data.test_labels).tolist() == [5_000], "image 40,000 of the training files, and no test one"
    assert data.test_labels[5_000] == 4
    assert "last 15,000 training images held out" in data.name


@pytest.mark.parametrize("count", [-1, 0, 40, 41])
def test_what_is_held_out_leaves_something_to_train_on(count: int) -> None:
    (images, labels), test = generate(seed=0, train_count=40, test_count=1)
    data = cifar10.TrainingData(
        train_images=images, train_labels=labels, test_images=test[0], test_labels=test[1], name="few"
    )
    with pytest.raises(ConfigError, match=f"holdout is {count}; expected 1 to 39"):
        cifar10.hold_out(data, count)


@pytest.mark.parametrize("size", [0, 1, FILE_BYTES - 1, FILE_BYTES + 1])
def test_a_file_of_another_size_is_named(folder: Path, size: int) -> None:
    with open(folder / "data_batch_3.bin", "r+b") as file:
        file.truncate(size)
    with pytest.raises(ConfigError, match=rf"data_batch_3\.bin has {size:,} bytes; expected 30,730,000"):
        cifar10.load_data(folder)


def test_a_label_above_nine_names_file_and_image(folder: Path) -> None:
    with open(folder / "test_batch.bin", "r+b") as file:
        file.seek(7 * RECORD_BYTES)
        file.write(b"\x0a")
    with pytest.raises(ConfigError, match=r"test_batch\.bin is corrupt: image 7 has label 10"):
        cifar10.load_data(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*data_batch_5\.bin"):
        cifar10.load_data(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        cifar10.load_data(tmp_path / "nowhere")


def test_a_failed_download_names_the_three_ways(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        sys.stdout.write("Downloading data\n")
        raise Exception("URL fetch failure")  # what Keras raises

    monkeypatch.setattr(tf.keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(ConfigError, match=r"cannot be had: URL fetch failure\. Three ways.*folder.*cache.*network"):
        cifar10.load_data("cifar10")
    assert capsys.readouterr().out == "", "standard output belongs to the caller's records"


def test_keras_images_take_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    part = (np.full((4, 32, 32, 3), 9, np.uint8), np.arange(4, dtype=np.uint8).reshape(4, 1))
    monkeypatch.setattr(tf.keras.datasets.cifar10, "load_data", lambda: (part, part))
    data = cifar10.load_data("cifar10")
    assert data.train_labels.tolist() == [0, 1, 2, 3]
    assert data.train_labels.dtype == np.int32


def test_generated_images_depend_on_their_seed_only() -> None:
    (images, labels), (test_images, _) = generate(seed=3, train_count=500, test_count=100)
    (again, labels_again), _ = generate(seed=3, train_count=500, test_count=100)
    (others, _), _ = generate(seed=4, train_count=500, test_count=100)
    assert images.shape == (500, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(images, others)
    assert not any((image == images).all(axis=(1, 2, 3)).any() for image in test_images)
    assert set(labels) == set(range(10))


def test_generated_classes_are_not_told_apart_by_mean_colours() -> None:
    (images, labels), (test_images, test_labels) = generate(seed=0, train_count=3000, test_count=1000)
    colours = images.mean(axis=(1, 2))
    centres = np.stack([colours[labels == label].mean(axis=0) for label in range(10)])
    test_colours = test_images.mean(axis=(1, 2))
    guessed = ((test_colours[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (guessed == test_labels).mean() < 0.35


@pytest.mark.parametrize(("count", "workers"), [(10, 1), (10, 3), (101, 4), (50_000, 2)])
def test_shares_are_disjoint_and_cover_everything(count: int, workers: int) -> None:
    shares = [shard_indices(count, rank, workers, seed=1, epoch=0) for rank in range(workers)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_change_with_epoch_and_seed_and_with_nothing_else() -> None:
    first = shard_indices(1000, 0, 2, seed=1, epoch=0)
    assert np.array_equal(first, shard_indices(1000, 0, 2, seed=1, epoch=0))
    assert not np.array_equal(first, shard_indices(1000, 0, 2, seed=1, epoch=1))
    assert not np.array_equal(first, shard_indices(1000, 0, 2, seed=2, epoch=0))


@pytest.mark.parametrize(("total", "workers"), [(0, 2), (1, 2), (7, 2), (100, 3), (8, 8)])
def test_every_step_belongs_to_one_rank_whether_or_not_workers_divide_them(total: int, workers: int) -> None:
    shares = [steps_of(total, rank, workers) for rank in range(workers)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("rank", "workers"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_does_not_exist_is_refused(rank: int, workers: int) -> None:
    with pytest.raises(ConfigError):
        steps_of(10, rank, workers)
    with pytest.raises(ConfigError):
        shard_indices(10, rank, workers, 0, 0)


def _labels_read(rank: int, *, workers: int, steps: int, seed: int = 5, batch_size: int = 4) -> list[int]:
    images = np.zeros((40, 32, 32, 3), np.uint8)
    batches = pipeline.training_batches(
        images,
        np.arange(40, dtype=np.int32),
        rank=rank,
        workers=workers,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
    )
    read = [labels.numpy().tolist() for _, labels in batches]
    assert len(read) == steps
    return [label for labels in read for label in labels]


def test_workers_read_different_images_and_together_all_of_them() -> None:
    first, second = (_labels_read(rank, workers=2, steps=5) for rank in range(2))
    assert set(first).isdisjoint(second)
    assert sorted(first + second) == list(range(40))


def test_a_minibatch_spans_two_epochs_when_the_share_is_no_multiple_of_it() -> None:
    read = _labels_read(0, workers=1, steps=20, batch_size=6)  # three epochs
    assert len(read) == 120
    for epoch in range(3):
        assert sorted(read[epoch * 40 : (epoch + 1) * 40]) == list(range(40))
    assert read[:40] != read[40:80]


def test_the_same_seed_and_rank_give_the_same_bytes() -> None:
    (images, labels), _ = generate(seed=0, train_count=64, test_count=1)

    def first_batch(seed: int, rank: int) -> np.ndarray:
        options = {"workers": 2, "batch_size": 16, "steps": 1}
        batches = pipeline.training_batches(images, labels, rank=rank, seed=seed, **options)
        return np.array(next(iter(batches))[0])

    assert np.array_equal(first_batch(1, 0), first_batch(1, 0))
    assert not np.array_equal(first_batch(1, 0), first_batch(2, 0))
    assert not np.array_equal(first_batch(1, 0), first_batch(1, 1))


def test_distortion_equals_the_tutorials_chain_of_operations() -> None:
    generator = np.random.default_rng(0)
    crops = generator.integers(0, 256, (32, 24, 24, 3)).astype(np.uint8)
    crops[0] = 77  # of one colour: deviation 0
    contrast = generator.uniform(pipeline.CONTRAST[0], pipeline.CONTRAST[1], 32).astype(np.float32)
    brightness = generator.uniform(-pipeline.BRIGHTNESS, pipeline.BRIGHTNESS, 32)
    ours = pipeline.distort(tf.constant(crops), tf.constant(contrast)).numpy()
    for index in range(32):
        image = tf.image.adjust_brightness(tf.cast(crops[index], tf.float32), brightness[index])
        image = tf.image.adjust_contrast(image, contrast[index])
        expected = tf.image.per_image_standardization(image).numpy()
        rounding = 2e-3 if index == 0 else 1e-4  # one colour: the chain divides its own rounding by 1 / sqrt(1728)
        np.testing.assert_allclose(ours[index], expected, atol=rounding)


def test_a_range_of_contrasts_of_one_leaves_crops_as_they_are() -> None:
    image = np.random.default_rng(3).integers(0, 256, (1, 24, 24, 3)).astype(np.uint8)
    canvas = np.zeros((1, 32, 32, 3), np.uint8) + image.mean().astype(np.uint8)
    canvas[:, 8:, 8:] = image  # in the corner, so that the crop at (8, 8) is the image itself
    batches = pipeline.training_batches(
        canvas, np.zeros(1, np.int32), rank=0, workers=1, batch_size=1, seed=0, steps=600, contrast=(1.0, 1.0)
    )
    expected = pipeline.distort(tf.constant(image), tf.ones([1])).numpy()
    assert any(np.allclose(batch.numpy(), expected, atol=1e-5) for batch, _ in batches)


def test_crops_are_windows_of_the_image_half_of_them_mirrored() -> None:
    places = np.arange(1024, dtype=np.int64).reshape(32, 32)
    image = np.stack([places // 256, places % 256, np.full_like(places, 7)], axis=2).astype(np.uint8)
    pixels = tf.constant(np.stack([np.zeros_like(image), image]).reshape(-1, 3))
    chosen = tf.ones([400], tf.int64)
    crops = pipeline._random_crops(pixels, chosen, tf.constant([1, 2], tf.int64), 400).numpy().astype(np.int64)
    assert (crops[..., 2] == 7).all()
    positions = crops[..., 0] * 256 + crops[..., 1]
    across = np.diff(positions, axis=2)
    mirrored = (across == -1).all(axis=(1, 2))
    assert (mirrored | (across == 1).all(axis=(1, 2))).all()
    assert (np.diff(positions, axis=1) == 32).all()
    assert 140 < mirrored.sum() < 260
    corners = np.where(mirrored, positions[:, 0, -1], positions[:, 0, 0])
    assert set(corners // 32) == set(range(9))
    assert set(corners % 32) == set(range(9))


def test_evaluation_takes_the_standardised_centre() -> None:
    image = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    centre = tf.image.per_image_standardization(image[:, 4:28, 4:28].astype(np.float32)).numpy()
    np.testing.assert_allclose(pipeline.central_crops(image).numpy(), centre, atol=1e-5)
