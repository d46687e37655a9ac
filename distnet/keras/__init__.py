"""DistNet behind Keras 3: plain ``fit`` over a parameter server, on the TensorFlow, PyTorch and JAX backends.

::

    model.compile("adam", "sparse_categorical_crossentropy")
    distnet.keras.distribute(model)
    model.fit(*distnet.keras.shard((x, y)), epochs=3)

- :func:`distribute`: a model whose optimizer steps over a parameter server.
- :func:`shard`: a worker's share of the data, whatever kind Keras trains on.

``docs/design/keras.md`` says how it is made.
"""

from __future__ import annotations

import re as _re

from distnet._private.extras import missing_module_message

try:
    import keras as _keras
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(missing_module_message(error) or str(error), name=error.name) from error

_OLDEST = (3, 5)
_version = tuple(int(number) for number in _re.findall(r"\d+", str(_keras.__version__))[:2])
if _version and _version < _OLDEST:  # where the pages are made, Keras is a stand-in without a version
    raise ImportError(
        f"distnet.keras needs Keras {'.'.join(map(str, _OLDEST))} or newer, and this is Keras {_keras.__version__}: "
        "pip install --upgrade keras (where TF_USE_LEGACY_KERAS is set, take it out)",
        name="keras",
    )

from distnet.keras.distribute import distribute  # noqa: E402 - of a Keras that is new enough
from distnet.keras.shard import shard  # noqa: E402

__all__ = ["distribute", "shard"]
