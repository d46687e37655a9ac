"""A pytree of JAX as a server holds it: a float32 tensor for each leaf, named by the way to it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distnet._private.arrays import Array, Arrays
from distnet._private.manifest import Manifest
from distnet.errors import ConfigError, ManifestMismatch

__all__ = ["Layout", "ServerOrder"]

# What is cast to float32 on its way to the server, and back on its way from it.
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_LONE_LEAF = "value"  # the name of a tree that is one array


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a tree is, beside its values.

    Attributes:
        structure: of the tree, as JAX has it.
        names: of the leaves, in the order of JAX: the keys, indices and attributes on the way to each, joined by
            ``"/"``, such as ``"dense/kernel"``; without the ``value`` of Flax's variables.
        shapes: of the leaves.
        dtypes: of the leaves, by their names in NumPy.
    """

    structure: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, tree: Any) -> Layout:
        """Return the layout of a tree of arrays.

        Args:
            tree: of arrays of JAX or NumPy, or of what stands for them, such as ``jax.ShapeDtypeStruct``.

        Raises:
            ConfigError: a leaf is no array of floating-point numbers, or two have one name.
        """
        with_ways, structure = jax.tree_util.tree_flatten_with_path(tree)
        names = tuple(_name(way) for way, _ in with_ways)
        if not names:
            raise ConfigError("the tree has no leaf; expected at least one array")
        name, times = collections.Counter(names).most_common(1)[0]
        if times > 1:
            raise ConfigError(f"{times} leaves of the tree have the name {name!r}; expected one: rename a key")
        dtypes = tuple(_checked_dtype(name, leaf) for name, (_, leaf) in zip(names, with_ways, strict=True))
        shapes = tuple(tuple(np.shape(leaf)) for _, leaf in with_ways)
        for name, shape in zip(names, shapes, strict=True):
            if not all(shape):
                raise ConfigError(f"leaf {name!r} has shape {shape}; expected no empty dimension")
        return cls(structure, names, shapes, dtypes)

    def initial(self, tree: Any) -> dict[str, Array]:
        """Return copies of a tree's values as float32 arrays by name: what a server begins with.

        Raises:
            ConfigError: the tree is one of a function that is being traced.
        """
        leaves = self.structure.flatten_up_to(tree)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            raise ConfigError(
                "the parameters are those of a step that is being traced; expected values: do this outside jit"
            )
        return {
            name: np.array(leaf, dtype=np.float32, order="C") for name, leaf in zip(self.names, leaves, strict=True)
        }

    def as_float32(self, leaf: Any) -> Any:
        """Return a leaf as a server takes it."""
        array = leaf if isinstance(leaf, jax.Array | np.ndarray) else jnp.asarray(leaf)
        return array if array.dtype == np.float32 else array.astype(np.float32)

    def tree_of(self, leaves: Sequence[Any]) -> Any:
        """Return a tree of float32 arrays, each cast to the leaf's dtype where that is another."""
        dtypes = (jax.dtypes.canonicalize_dtype(dtype) for dtype in self.dtypes)
        cast = [
            leaf if leaf.dtype == dtype else jnp.asarray(leaf, dtype)
            for leaf, dtype in zip(leaves, dtypes, strict=True)
        ]
        return jax.tree_util.tree_unflatten(self.structure, cast)


class ServerOrder:
    """Which leaf of a tree is which tensor of a server.

    Args:
        layout: of the tree.
        manifest: of the server's tensors. One without names is a list in the order of the leaves.

    Attributes:
        layout: of the tree.

    Raises:
        ManifestMismatch: the tree is not the server's model.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self.layout = layout
        self._manifest = manifest
        if manifest.named:
            _check_names(layout, manifest)
            number = {name: leaf for leaf, name in enumerate(layout.names)}
            self._leaf_of = [number[name] for name in manifest.names]
        else:
            if len(layout.names) != len(manifest.shapes):
                raise ManifestMismatch(
                    f"the tree has {len(layout.names)} leaves, and the server holds {len(manifest.shapes)} tensors; "
                    "expected one for each, in the same order"
                )
            self._leaf_of = list(range(len(layout.names)))
        for name, shape, leaf in zip(manifest.names, manifest.shapes, self._leaf_of, strict=True):
            if layout.shapes[leaf] != shape:
                raise ManifestMismatch(
                    f"leaf {layout.names[leaf]!r} has shape {layout.shapes[leaf]}, and the server's tensor {name!r} "
                    f"has {shape}; expected the same"
                )

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors, in the server's order."""
        return self._manifest.shapes

    def tensors(self, tree: Any) -> list[Any]:
        """Return a tree's leaves as float32 arrays in the server's order."""
        leaves = self.layout.structure.flatten_up_to(tree)
        return [self.layout.as_float32(leaves[leaf]) for leaf in self._leaf_of]

    def tree(self, tensors: Sequence[Any]) -> Any:
        """Return the tree of float32 arrays in the server's order."""
        leaves: list[Any] = [None] * len(tensors)
        for leaf, tensor in zip(self._leaf_of, tensors, strict=True):
            leaves[leaf] = tensor
        return self.layout.tree_of(leaves)

    def structured(self, arrays: Sequence[Array]) -> Arrays:
        """Return arrays in the server's order as a client takes them."""
        return self._manifest.structured(list(arrays))


def _name(way: Sequence[Any]) -> str:
    if len(way) > 1 and getattr(way[-1], "name", None) == "value":
        way = way[:-1]  # Flax's variables hold an array as an attribute of this name, and trees come with and without
    return "/".join(_key(step) for step in way) or _LONE_LEAF


def _key(step: Any) -> str:
    for attribute in ("key", "idx", "name"):  # of a dict, a sequence, an object
        if (key := getattr(step, attribute, None)) is not None:
            return str(key)
    return str(step)


def _checked_dtype(name: str, leaf: Any) -> str:
    """Return the name of a leaf's dtype, if a server can hold it as float32."""
    if isinstance(leaf, float):
        return "float32"
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        raise ConfigError(f"leaf {name!r} is {leaf!r}, a {type(leaf).__name__}; expected an array of floats")
    if str(dtype) not in _FLOATS:
        raise ConfigError(
            f"leaf {name!r} is {dtype}; expected {', '.join(_FLOATS)}: leave it out where it is no parameter, such as "
            "a count or a random key, else cast it to a float"
        )
    return str(dtype)


def _check_names(layout: Layout, manifest: Manifest) -> None:
    own, held = set(layout.names), set(manifest.names)
    missing = [name for name in manifest.names if name not in own]
    unknown = [name for name in layout.names if name not in held]
    if missing or unknown:
        what = f"no {missing[0]!r}, which the server holds" if missing else f"{unknown[0]!r}, which it does not hold"
        both = f", and {unknown[0]!r}, which it does not" if missing and unknown else ""
        raise ManifestMismatch(
            f"the tree is not the server's model: it has {what}{both}; give a tree of the structure that the server "
            "was given"
        )
