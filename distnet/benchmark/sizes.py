"""Sizes of models, tensor by tensor, derived from the rules of their architectures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

__all__ = ["SIZES", "Size"]


@dataclasses.dataclass(frozen=True)
class Size:
    """A model's size: its name and its tensors' sizes, in floats."""

    name: str
    tensors: tuple[int, ...]

    @property
    def floats(self) -> int:
        """How many floats there are in all tensors."""
        return sum(self.tensors)

    @property
    def bytes(self) -> int:
        """How many bytes they take."""
        return 4 * self.floats


def _resnet50() -> Iterator[int]:
    """Yield every convolution's weights with its batch norm's scale and shift, then the classifier."""

    def convolution(kernel: int, inputs: int, outputs: int) -> tuple[int, ...]:
        return kernel * kernel * inputs * outputs, outputs, outputs

    yield from convolution(7, 3, 64)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(1, inputs, width)
            yield from convolution(3, width, width)
            yield from convolution(1, width, 4 * width)
            if block == 0:
                yield from convolution(1, inputs, 4 * width)
            inputs = 4 * width
    yield from (inputs * 1000, 1000)


def _bert_base() -> Iterator[int]:
    """Yield the embeddings, twelve layers of attention and feed-forward, and the pooler."""
    width, hidden = 768, 3072
    normalisation, square = (width, width), (width * width, width)
    yield from (30_522 * width, 512 * width, 2 * width, *normalisation)
    for _ in range(12):
        yield from (*square, *square, *square, *square, *normalisation)  # query, key, value, output
        yield from (width * hidden, hidden, hidden * width, width, *normalisation)
    yield from square


_ALEXNET = (4800, 64, 102_400, 64, 884_736, 384, 73_728, 192, 1920, 10)  # the 2017 project's, for CIFAR-10

SIZES = {
    "small": Size("4 KiB", (1024,)),
    "medium": Size("64 KiB", (16_384,)),
    "alexnet": Size("AlexNet, 4.27 MB", _ALEXNET),
    "resnet50": Size("ResNet-50, 102 MB", tuple(_resnet50())),
    "bert": Size("BERT-base, 438 MB", tuple(_bert_base())),
}
