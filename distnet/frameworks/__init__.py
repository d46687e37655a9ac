"""What the doors for frameworks share, such as :mod:`distnet.tensorflow`: none of it imports a framework.

A door turns a framework's model into arrays and back. Everything between it and the client is here:

- :mod:`~distnet.frameworks.client_protocol`: what is needed of a client.
- :mod:`~distnet.frameworks.tensors`: whether a model's tensors and gradients are those of the server.
- :mod:`~distnet.frameworks.replica`: the memory that replies are written to.
- :mod:`~distnet.frameworks.exchange`: a gradient out and parameters in, also while the next step is computed.
- :mod:`~distnet.frameworks.job`: the servers of the job that a process belongs to, found or started.
- :mod:`~distnet.frameworks.patterns`: patterns of names, for groups of tensors.
- :mod:`~distnet.frameworks.rendezvous`: where ranks on several hosts hear where these are.
- :mod:`~distnet.frameworks.ranks`: all ranks of a job, for what they do together beside pushes.
- :mod:`~distnet.frameworks.metrics`: what is known of a step.
- :mod:`~distnet.frameworks.keras_variables`: what all backends of Keras have in common.

To add a framework: write ``distnet/<framework>.py`` on these, as ``distnet/tensorflow.py`` is, and let it import the
framework in ``FRAMEWORK_IMPORTERS`` of ``tests/python/test_layers.py``.
"""
