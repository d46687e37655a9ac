"""AlexNet on CIFAR-10: the network, its recipes, its images and its training loops.

Nothing here is imported with ``distnet``; only :mod:`~distnet.alexnet.network_tensorflow`,
:mod:`~distnet.alexnet.images`, :mod:`~distnet.alexnet.local_optimizer` and :mod:`~distnet.alexnet.loops` import
TensorFlow.

:mod:`distnet.alexnet.recipes`
    ``RECIPES``: ``{"default": Recipe(...), "tutorial": Recipe(...)}``, everything that decides how well it learns.
    ``recipe.optimizer(examples=…, effective_batch=…)`` gives the server's optimizer for a run over that many examples
    in all workers together, of which one update joins ``effective_batch``; ``recipe.rate_rule(effective_batch=…)`` says
    in words how the rate comes about.

:mod:`distnet.data.cifar10`, :mod:`distnet.data.generated`
    ``load_data(source) -> TrainingData`` with ``source`` one of ``"cifar10"`` (Keras's cache or checked download),
    ``"generated"`` or a folder of the official binary files.

:mod:`distnet.alexnet.place`
    ``Place``: where a rank is in its data, the bytes that ride on its pushes and come back after a resume.

:mod:`distnet.alexnet.loops`
    ``initial_parameters(seed) -> {name: float32 array}``: what a server is started with.
    ``train_worker(client, …)``: one rank's steps against a server; ``train_local(…)``: the baseline, one process and no
    server; both tell ``on_step(StepRecord)`` after every step and return a ``TrainingResult``.
    ``evaluate(arrays, data) -> Evaluation``: accuracy and loss on the test images' central crops.
"""
