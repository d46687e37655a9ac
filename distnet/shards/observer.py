"""How a server looks into its own shards: by a session that takes part in no round."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from distnet import _native
from distnet._private.arrays import Array, Arrays
from distnet._private.manifest import Manifest
from distnet._private.waiting import Waiting
from distnet.shards.settings import settings_from_text
from distnet.snapshot import Cut
from distnet.tuning import Tuning

__all__ = ["Observer"]

_SECONDS = 30.0  # for which the model is waited for, and of a shard's silence


class Observer:
    """A session of the server's own with all of its shards, which they know by the owner's secret.

    Args:
        address: where the shards listen.
        owner: the secret that the server has given them.
        model: to bring to shards that have none: whether its tensors have names, and (name, array) pairs. None: the
            model is waited for.

    Raises:
        DistNetError: as :func:`distnet.connect` does.

    Thread-safety: one thread. Use it in a ``with`` statement, which ends the session.
    """

    def __init__(self, address: str, owner: int, model: tuple[bool, list[tuple[str, Array]]] | None = None) -> None:
        named, initial = model if model is not None else (False, [])
        waiting = None  # whoever brings the model takes as long as it takes
        if model is None:
            waiting = Waiting("a call of the server's own", address, _SECONDS)
        self._native = _native.Client(
            address, None, _SECONDS, "auto", named, initial, Tuning().to_spec(), 0, owner, waiting
        )

    def manifest(self) -> Manifest:
        """Return what the model's tensors are."""
        return Manifest.of_engine(self._native.manifest())

    def optimizer_and_groups(self) -> dict[str, Any]:
        """Return the server's optimizer and groups, by these names: those that it was given, or that were brought."""
        said = settings_from_text(self._native.about_optimizer)  # perhaps by a client, who has no say in other settings
        return {name: said[name] for name in ("optimizer", "groups") if name in said}

    def parameters(self, *, ema: bool) -> Arrays:
        """Return a copy of the parameters or of their EMA, with every push that was accepted before the call."""
        number = self._native.begin("pull_ema_settled" if ema else "pull_settled", None, False, True)
        manifest = self.manifest()
        arrays = manifest.empty_arrays()
        self._native.finish(number, arrays)
        return manifest.structured(arrays)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Replace the optimizer's schedule by a constant at every shard."""
        self._native.set_learning_rate(learning_rate)

    def cut(self, at_round: int | None, timeout_s: float, optimizer: Mapping[str, Any]) -> Cut:
        """Return the state at one moment; it can be read as long as this session lasts.

        Args:
            at_round: before which the shards are cut; None: before the one that is open.
            timeout_s: in which the cut must come.
            optimizer: as plain values, for the cut to name.
        """
        shape = self._native.begin_snapshot(at_round, timeout_s)
        manifest = self.manifest()
        return Cut(
            named=manifest.named,
            tensors=tuple(zip(manifest.names, manifest.shapes, strict=True)),
            ema=shape["ema"],
            state_vectors=shape["state_vectors"],
            versions=tuple(shape["versions"]),
            round=shape["round"],
            optimizer=optimizer,
            learning_rate=shape["learning_rate"],
            read=self._native.read_snapshot,
        )

    def close(self) -> None:
        """End the session."""
        self._native.close()

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
