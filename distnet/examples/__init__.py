"""AlexNet on CIFAR-10: the network, its recipes, its pictures and its training loops.

Nothing here is imported with ``distnet``; only :mod:`~distnet.examples.alexnet`, :mod:`~distnet.examples.pictures` and
:mod:`~distnet.examples.training` import TensorFlow.

:mod:`distnet.examples.recipes` (standard library)
    ``RECIPES``: ``{"default": Recipe(...), "tutorial": Recipe(...)}``, frozen dataclasses: ``name``, ``batch_size`` (a
    worker's), ``average`` (decay of the moving average), ``weight_decay`` (of the dense layers), ``epochs`` (a sensible run).
    ``recipe.optimizer(examples=…, effective_batch=…)`` gives the server's :mod:`distnet.optimizers` value for a run over
    that many examples in all workers together, of which one update joins ``effective_batch``;
    ``recipe.rate_rule(effective_batch=…)`` states in words how the rate was chosen.

:mod:`distnet.examples.cifar10` (NumPy)
    ``load_data(source, *, seed=0) -> TrainingData`` with ``source`` one of ``"cifar10"`` (Keras's cache or checked
    download), ``"generated"`` or a folder of the official binary files. ``TrainingData(train_images, train_labels,
    test_images, test_labels, name)``: uint8 ``[N, 32, 32, 3]``, int32 ``[N]``.

:mod:`distnet.examples.training` (TensorFlow)
    ``initial_parameters(seed) -> {name: float32 array}``: what a server is started with.
    ``train_worker(client, *, data, recipe, rank, workers, steps, seed=0, batch_size=None, threads=None, overlap=False,
    on_step=None) -> TrainingResult``: one rank's loop of ``steps`` steps of its own; the caller closes the client.
    ``train_local(*, data, recipe, steps, seed=0, batch_size=None, threads=None, on_step=None, snapshot_steps=0,
    on_snapshot=None) -> TrainingResult``: the baseline, one process and no server.
    ``on_step(StepRecord)`` is called after every step; ``on_snapshot(Snapshot)`` every ``snapshot_steps`` steps with copies
    of the averaged parameters.
    ``evaluate(arrays, data, *, examples=None) -> Evaluation(accuracy, loss, examples)``: central crops of the test
    pictures; ``arrays`` as ``client.pull(average=True)`` or ``server.parameters(average=True)`` give them (list or dict).

:mod:`distnet.worker` (standard library and NumPy)
    ``steps_of(total, rank, workers)``: a rank's share of a run's steps, whether or not the number of workers divides them.
"""
